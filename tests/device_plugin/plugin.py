"""A device plugin as people write them: it offers two cameras of this node, and registers again when the node's socket is
another one.

gRPC's generic interface and a few lines for protobuf's wire format, as in the mapper. What it is asked goes line by line
to a file.
"""

import argparse
import json
import os
import sys
import threading
import time
from concurrent import futures

import grpc

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(__file__), "../dmi"))
from mapper import field, fields  # noqa: E402

RESOURCE = "example.com/camera"
CAMERAS = ["left", "right"]


class Plugin:
    def __init__(self, arguments):
        self.folder = arguments.folder
        self.log = open(arguments.log, "a", buffering=1)
        self.gone = threading.Event()

    def note(self, what, **more):
        self.log.write(json.dumps({"what": what, "pid": os.getpid(), **more}) + "\n")

    # ------------------------------------------------------------------------------------- called by the node

    def options(self, request, context):
        return field(1, True) + field(2, True)

    def list_and_watch(self, request, context):
        self.note("watched")
        yield b"".join(field(1, field(1, camera) + field(2, "Healthy")) for camera in CAMERAS)
        while context.is_active():
            time.sleep(0.2)

    def prefer(self, request, context):
        """The last one in the alphabet, where the node itself would take the first one."""
        answer = b""
        for asked in fields(request).get(1, []):
            free = sorted(id.decode() for id in fields(asked).get(1, []))
            self.note("prefer", free=free)
            answer += field(1, field(1, free[-1]))
        return answer

    def allocate(self, request, context):
        answer = b""
        for asked in fields(request).get(1, []):
            ids = [id.decode() for id in fields(asked).get(1, [])]
            self.note("allocate", ids=ids)
            env = field(1, field(1, "CAMERA") + field(2, ",".join(ids)))
            mount = field(2, field(1, "/calibration") + field(2, self.folder) + field(3, True))
            device = field(3, field(1, "/dev/camera") + field(2, "/dev/null") + field(3, "rw"))
            answer += field(1, env + mount + device)
        return answer

    def prepare(self, request, context):
        self.note("prepare", ids=[id.decode() for id in fields(request).get(1, [])])
        return b""

    def serve(self):
        unary = grpc.unary_unary_rpc_method_handler
        handlers = {
            "GetDevicePluginOptions": unary(self.options),
            "ListAndWatch": grpc.unary_stream_rpc_method_handler(self.list_and_watch),
            "GetPreferredAllocation": unary(self.prefer),
            "Allocate": unary(self.allocate),
            "PreStartContainer": unary(self.prepare),
        }
        server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("v1beta1.DevicePlugin", handlers),))
        socket = os.path.join(self.folder, "camera.sock")
        if os.path.exists(socket):
            os.unlink(socket)
        server.add_insecure_port("unix:" + socket)
        server.start()
        return server

    # --------------------------------------------------------------------------------------- calls of the node

    def register(self, socket):
        request = field(1, "v1beta1") + field(2, "camera.sock") + field(3, RESOURCE) + field(4, self.options(b"", None))
        with grpc.insecure_channel("unix:" + socket) as channel:
            channel.unary_unary("/v1beta1.Registration/Register")(request, timeout=5)
        self.note("registered")

    def run(self):
        self.server = self.serve()
        socket, known = os.path.join(self.folder, "kubelet.sock"), None
        while True:
            try:
                found = os.stat(socket)
                if (found.st_ino, found.st_ctime_ns) != known:
                    self.register(socket)
                    known = (found.st_ino, found.st_ctime_ns)
            except (OSError, grpc.RpcError) as error:
                self.note("not registered", why=str(error))
            time.sleep(0.2)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name in ["folder", "log"]:
        parser.add_argument("--" + name, required=True)
    Plugin(parser.parse_args()).run()
