//! Both ends of the link between edge and cloud, as pure state machines.
