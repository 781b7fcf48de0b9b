"""A mapper in another language: gRPC's generic interface, and a few lines for protobuf's wire format.

It keeps strictly to the words of DMI: a device is registered once, and only what is there is updated or removed. What
happens to it goes line by line to a file, and what its devices have counts up in another, which outlives it.
"""

import argparse
import json
import os
import signal
import sys
import threading
import time
from concurrent import futures

import grpc

MANAGER = "/v1beta1.DeviceManagerService/"
MAPPER = "v1beta1.DeviceMapperService"


def varint(number):
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def field(number, value):
    """A field with text, bytes or a boolean; absent if it is None or false."""
    if value is None or value is False:
        return b""
    if value is True:
        return varint(number << 3) + b"\x01"
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def fields(message):
    """All fields of a message: number -> list of bytes or numbers."""
    found, at = {}, 0

    def number():
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(message):
        key = number()
        if key & 7 == 0:
            value = number()
        else:
            length = number() if key & 7 == 2 else {1: 8, 5: 4}[key & 7]
            value, at = message[at : at + length], at + length
        found.setdefault(key >> 3, []).append(value)
    return found


def text(message, number):
    return message.get(number, [b""])[0].decode()


def parse(device):
    """A device: its id, and the desired value of each property."""
    device = fields(device)
    spec = fields(device[2][0])
    properties = [fields(property) for property in spec.get(3, [])]
    desired = {text(property, 1): text(fields(property[2][0]), 1) for property in properties}
    return f"{text(device, 4)}/{text(device, 1)}", desired


class Mapper:
    def __init__(self, arguments):
        self.arguments = arguments
        self.lock = threading.Lock()
        self.devices = {}
        self.models = set()
        self.log = open(arguments.log, "a", buffering=1)

    def note(self, what, **more):
        self.log.write(json.dumps({"what": what, "pid": os.getpid(), "at": round(time.time(), 3), **more}) + "\n")

    # ------------------------------------------------------------------------------------ called by edgecore

    def register_device(self, request, context):
        id, desired = parse(fields(request)[1][0])
        with self.lock:
            self.note("created twice" if id in self.devices else "created", device=id, desired=desired)
            self.devices[id] = desired
        return b""

    def update_device(self, request, context):
        id, desired = parse(fields(request)[1][0])
        with self.lock:
            if id not in self.devices:
                context.abort(grpc.StatusCode.NOT_FOUND, f"device {id} is not here")
            self.devices[id] = desired
            self.note("updated", device=id, desired=desired)
        return b""

    def remove_device(self, request, context):
        request = fields(request)
        id = f"{text(request, 2)}/{text(request, 1)}"
        with self.lock:
            if self.devices.pop(id, None) is None:
                context.abort(grpc.StatusCode.NOT_FOUND, f"device {id} is not here")
            self.note("removed", device=id)
        return b""

    def take_model(self, request, context):
        self.models.add(text(fields(fields(request)[1][0]), 1))
        return b""

    def remove_model(self, request, context):
        self.models.discard(text(fields(request), 1))
        return b""

    def serve(self):
        methods = {
            "RegisterDevice": self.register_device,
            "UpdateDevice": self.update_device,
            "RemoveDevice": self.remove_device,
            "CreateDeviceModel": self.take_model,
            "UpdateDeviceModel": self.take_model,
            "RemoveDeviceModel": self.remove_model,
        }
        handlers = {name: grpc.unary_unary_rpc_method_handler(method) for name, method in methods.items()}
        server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(MAPPER, handlers),))
        if os.path.exists(self.arguments.socket):
            os.unlink(self.arguments.socket)
        server.add_insecure_port("unix:" + self.arguments.socket)
        server.start()
        return server

    # -------------------------------------------------------------------------------------- calls of edgecore

    def call(self, method, request):
        return self.channel.unary_unary(MANAGER + method)(request, timeout=1)

    def register(self):
        """As KubeEdge's mappers do it: register, and begin with the devices of the answer."""
        options = []
        if self.arguments.authority:
            options.append(("grpc.default_authority", self.arguments.authority))
        self.channel = grpc.insecure_channel(self.arguments.dial, options)
        info = field(1, "python-mapper") + field(2, "v1") + field(3, "v1beta1")
        info += field(4, self.arguments.protocol) + field(5, self.arguments.socket) + field(6, "ok")
        while True:
            try:
                answer = fields(self.call("MapperRegister", field(1, True) + field(2, info)))
                break
            except grpc.RpcError as error:
                self.note("not registered", why=f"{error.code()}: {error.details()}")
                time.sleep(0.1)
        with self.lock:
            self.devices = dict(parse(device) for device in answer.get(2, []))
            self.models = {text(fields(model), 1) for model in answer.get(1, [])}
            self.note("registered", devices=self.devices, models=sorted(self.models))

    def report(self, id, count, desired):
        namespace, name = id.split("/")
        stamp = field(2, field(1, "timestamp") + field(2, str(int(time.time() * 1000))))
        twins = field(1, field(1, "count") + field(3, field(1, str(count)) + stamp))
        if desired.get("limit"):
            limit = field(1, desired["limit"]) + stamp
            twins += field(1, field(1, "limit") + field(2, limit) + field(3, limit))
        self.call("ReportDeviceStatus", field(1, name) + field(2, twins) + field(3, namespace))
        self.call("ReportDeviceStates", field(1, name) + field(2, namespace) + field(3, "online"))

    def count(self):
        """The counter of all devices; it goes on where an earlier run has stopped."""
        try:
            with open(self.arguments.counter) as file:
                count = int(file.read())
        except (OSError, ValueError):
            count = 0
        if not os.path.exists(self.arguments.counter + ".stop"):
            count += 1
            with open(self.arguments.counter + ".new", "w") as file:
                file.write(str(count))
            os.replace(self.arguments.counter + ".new", self.arguments.counter)
        return count

    def run(self):
        self.register()
        server = self.serve()
        while True:
            count = self.count()
            with self.lock:
                devices = dict(self.devices)
            for id, desired in devices.items():
                try:
                    self.report(id, count, desired)
                except grpc.RpcError as error:
                    self.note("not reported", device=id, why=f"{error.code()}: {error.details()}")
            time.sleep(self.arguments.every)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name in ["dial", "socket", "protocol", "log", "counter"]:
        parser.add_argument("--" + name, required=True)
    parser.add_argument("--authority")
    parser.add_argument("--every", type=float, default=0.05)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    Mapper(parser.parse_args()).run()
