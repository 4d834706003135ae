"""A backend of Python's grpcio: api.Echo and e2e.Test/Unary return what they are given. Prints its address."""

import concurrent.futures
import os
import sys
import threading

import grpc

# Where .proto files are looked for.
root = os.path.join(os.path.dirname(__file__), "..", "..")
sys.path[:0] = [os.path.join(root, "..", "proto", "api"), os.path.join(root, "proto")]

echo, echo_services = grpc.protos_and_services("echo.proto")
_, test_services = grpc.protos_and_services("test.proto")


class Echo(echo_services.EchoServicer):
    def Echo(self, request, context):
        return echo.EchoResponse(content=request.content)


class Test(test_services.TestServicer):
    def Unary(self, request, context):
        return request


server = grpc.server(concurrent.futures.ThreadPoolExecutor(16))
echo_services.add_EchoServicer_to_server(Echo(), server)
test_services.add_TestServicer_to_server(Test(), server)
port = server.add_insecure_port("127.0.0.1:0")
server.start()
print(f"127.0.0.1:{port}", flush=True)
threading.Event().wait()
