//! KubeEdge's MQTT topics.
