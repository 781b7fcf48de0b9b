"""What an application built on the Paho client sees of a broker. Usage: paho_client.py HOST PORT"""

import sys
import threading
import time

import paho.mqtt.client as mqtt

HOST, PORT = sys.argv[1], int(sys.argv[2])
PATIENCE = 10


class Client:
    """A Paho client that remembers what it was told."""

    def __init__(self, name, clean=True, will=None):
        kinds = [getattr(mqtt, "CallbackAPIVersion").VERSION1] if hasattr(mqtt, "CallbackAPIVersion") else []
        self.paho = mqtt.Client(*kinds, client_id=name, clean_session=clean, protocol=mqtt.MQTTv311)
        self.changed = threading.Condition()
        self.connected, self.messages, self.published, self.granted = None, [], [], {}
        self.paho.on_connect = lambda _c, _u, flags, code: self.note("connected", (flags["session present"], code))
        self.paho.on_message = lambda _c, _u, m: self.add(
            self.messages, (m.topic, m.payload.decode(), m.qos, bool(m.retain))
        )
        self.paho.on_publish = lambda _c, _u, mid: self.add(self.published, mid)
        self.paho.on_subscribe = lambda _c, _u, mid, granted: self.put(mid, granted)
        if will:
            self.paho.will_set(*will)
        self.paho.connect(HOST, PORT, keepalive=5)
        self.paho.loop_start()
        self.wait(lambda: self.connected is not None, "CONNACK")

    def note(self, name, value):
        with self.changed:
            setattr(self, name, value)
            self.changed.notify_all()

    def add(self, items, value):
        with self.changed:
            items.append(value)
            self.changed.notify_all()

    def put(self, mid, granted):
        with self.changed:
            self.granted[mid] = tuple(granted)
            self.changed.notify_all()

    def wait(self, holds, what):
        with self.changed:
            assert self.changed.wait_for(holds, PATIENCE), f"{what} does not come"

    def subscribe(self, *filters):
        _, mid = self.paho.subscribe(list(filters))
        self.wait(lambda: mid in self.granted, "SUBACK")
        return self.granted[mid]

    def publish(self, topic, payload, qos=0, retain=False):
        info = self.paho.publish(topic, payload, qos, retain)
        info.wait_for_publish(PATIENCE)
        assert info.is_published(), f"QoS {qos} is not completed"

    def receives(self, *expected):
        self.wait(lambda: len(self.messages) >= len(expected), f"{expected}")
        assert self.messages == list(expected), f"{self.messages} instead of {list(expected)}"
        self.messages.clear()

    def leave(self):
        self.paho.disconnect()
        self.paho.loop_stop()

    def vanish(self):
        self.paho.loop_stop()
        self.paho._sock_close()


def basic():
    a, b = Client("a"), Client("b")
    assert a.connected == (False, 0)
    assert a.subscribe(("room/+", 2), ("other", 0)) == (1, 0)
    for qos in (0, 1, 2):
        b.publish("room/t", str(qos), qos)
    a.receives(("room/t", "0", 0, False), ("room/t", "1", 1, False), ("room/t", "2", 1, False))
    a.leave(), b.leave()


def retained():
    a, b = Client("a"), Client("b")
    for qos, name in ((0, "x"), (1, "y"), (2, "z")):
        b.publish(f"kept/{name}", name, qos, True)
    a.subscribe(("kept/#", 1))
    expected = [("kept/x", "x", 0, True), ("kept/y", "y", 1, True), ("kept/z", "z", 1, True)]
    a.wait(lambda: len(a.messages) >= 3, "retained messages")
    assert sorted(a.messages) == expected, a.messages
    for name in "xyz":
        b.publish(f"kept/{name}", b"", 1, True)
    c = Client("c")
    c.subscribe(("kept/#", 1))
    b.publish("kept/end", "end", 1)
    c.receives(("kept/end", "end", 1, False))
    a.leave(), b.leave(), c.leave()


def zero_length_name():
    a = Client("")
    assert a.connected == (False, 0)
    a.leave()


def kept_session():
    a, b = Client("a", clean=False), Client("b")
    a.subscribe(("t/#", 1))
    a.leave()
    for number in range(5):
        b.publish("t/x", str(number), 1)
    a = Client("a", clean=False)
    assert a.connected == (True, 0)
    a.receives(*(("t/x", str(number), 1, False) for number in range(5)))
    a.leave(), b.leave()
    a = Client("a", clean=True)
    assert a.connected == (False, 0)
    a.leave()


def will():
    a = Client("a")
    a.subscribe(("gone/#", 1))
    Client("b", will=("gone/b", "b", 1, False)).vanish()
    a.receives(("gone/b", "b", 1, False))
    Client("c", will=("gone/c", "c", 1, False)).leave()
    a.paho.publish("gone/end", "end")
    a.receives(("gone/end", "end", 0, False))
    a.leave()


def overlapping():
    a = Client("a")
    a.subscribe(("x/#", 1), ("x/+", 0))
    a.publish("x/y", "once", 1)
    a.publish("x/end", "end", 0)
    a.receives(("x/y", "once", 1, False), ("x/end", "end", 0, False))
    a.leave()


def take_over():
    first = Client("same")
    ended = threading.Event()
    first.paho.on_disconnect = lambda *_: ended.set()
    second = Client("same")
    assert ended.wait(PATIENCE), "the first connection goes on"
    first.paho.loop_stop()
    second.leave()


def dollar():
    a = Client("a")
    a.subscribe(("#", 0), ("+/x", 0))
    a.publish("$hw/x", "hidden", 1)
    a.publish("open/x", "seen", 1)
    a.receives(("open/x", "seen", 0, False))
    a.leave()


def unsubscribe():
    a = Client("a")
    a.subscribe(("u/1", 0), ("u/2", 0))
    done = threading.Event()
    a.paho.on_unsubscribe = lambda *_: done.set()
    a.paho.unsubscribe("u/1")
    assert done.wait(PATIENCE), "UNSUBACK does not come"
    a.publish("u/1", "no", 1)
    a.publish("u/2", "yes", 1)
    a.receives(("u/2", "yes", 0, False))
    a.leave()


def keep_alive_and_load():
    a, b = Client("a"), Client("b")
    a.subscribe(("load", 1))
    b.paho.max_inflight_messages_set(100)
    for number in range(2000):
        b.paho.publish("load", str(number), 1 + number % 2)
    a.receives(*(("load", str(number), 1, False) for number in range(2000)))
    time.sleep(8)
    b.publish("load", "still here", 2)
    a.receives(("load", "still here", 1, False))
    a.leave(), b.leave()


CHECKS = [
    basic, retained, zero_length_name, kept_session, will, overlapping, take_over, dollar, unsubscribe, keep_alive_and_load,
]
for check in CHECKS:
    check()
    print(f"{check.__name__}: good", flush=True)
print(f"{len(CHECKS)} checks passed")
