"""gRPC's interoperability cases by Python's grpcio: python interop.py --server_host=… --test_case=CASE,CASE…

Flags as those of gRPC's own clients. Writes a line for each case: "passed CASE", or "failed CASE: why".
"""

import argparse
import collections
import concurrent.futures
import os
import queue
import sys

import grpc

# Where .proto files are looked for.
sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "..", "proto"))

pb, services = grpc.protos_and_services("interop.proto")

REQUESTS = [27182, 8, 1828, 45904]
RESPONSES = [31415, 9, 2653, 58979]

CASES = {}


def case(function):
    CASES[function.__name__] = function
    return function


def payload(size):
    return pb.Payload(body=bytes(size))


def ping(request, response):
    parameters = [pb.ResponseParameters(size=response)]
    return pb.StreamingOutputCallRequest(response_parameters=parameters, payload=payload(request))


class Sent:
    """A stream's requests, sent one by one."""

    def __init__(self):
        self.queue = queue.Queue()

    def send(self, message):
        self.queue.put(message)

    def close(self):
        self.queue.put(None)

    def __iter__(self):
        return iter(self.queue.get, None)


def is_failure(call, code, details=None):
    try:
        call()
    except (grpc.RpcError, grpc.FutureCancelledError) as error:
        # A future that was cancelled has no status of its own.
        found = error.code() if isinstance(error, grpc.RpcError) else grpc.StatusCode.CANCELLED
        assert found == code, error
        assert details is None or error.details() == details, repr(error.details())
        return
    raise AssertionError("it didn't fail")


@case
def empty_unary(client):
    client.stub.EmptyCall(pb.Empty())


@case
def large_unary(client):
    large(client.stub)


def large(stub, compression=None, **more):
    asked = pb.SimpleRequest(response_size=314159, payload=payload(271828), **more)
    reply = stub.UnaryCall(asked, timeout=60, compression=compression)
    assert len(reply.payload.body) == 314159, len(reply.payload.body)


@case
def client_compressed_unary(client):
    compressed, plain = pb.BoolValue(value=True), pb.BoolValue(value=False)
    is_failure(lambda: large(client.stub, expect_compressed=compressed), grpc.StatusCode.INVALID_ARGUMENT)
    large(client.stub, compression=grpc.Compression.Gzip, expect_compressed=compressed)
    large(client.stub, expect_compressed=plain)


@case
def server_compressed_unary(client):
    # Whether a message was compressed, grpcio tells nobody: what was is read right.
    for value in [True, False]:
        large(client.stub, response_compressed=pb.BoolValue(value=value))


@case
def client_streaming(client):
    messages = (pb.StreamingInputCallRequest(payload=payload(size)) for size in REQUESTS)
    reply = client.stub.StreamingInputCall(messages)
    assert reply.aggregated_payload_size == 74922, reply


@case
def server_streaming(client):
    parameters = [pb.ResponseParameters(size=size) for size in RESPONSES]
    replies = client.stub.StreamingOutputCall(pb.StreamingOutputCallRequest(response_parameters=parameters))
    sizes = [len(reply.payload.body) for reply in replies]
    assert sizes == RESPONSES, sizes


@case
def ping_pong(client):
    sent = Sent()
    replies = client.stub.FullDuplexCall(iter(sent))
    for request, response in zip(REQUESTS, RESPONSES):
        sent.send(ping(request, response))
        size = len(next(replies).payload.body)
        assert size == response, size
    sent.close()
    assert list(replies) == []


@case
def empty_stream(client):
    assert list(client.stub.FullDuplexCall(iter([]))) == []


@case
def custom_metadata(client):
    initial, trailing = ("x-grpc-test-echo-initial", "test_initial_metadata_value"), (
        "x-grpc-test-echo-trailing-bin",
        b"\xab\xab\xab",
    )

    def check(call):
        headers, trailers = list(call.initial_metadata()), list(call.trailing_metadata())
        assert initial in [tuple(one) for one in headers], headers
        assert trailing in [tuple(one) for one in trailers], trailers

    asked = pb.SimpleRequest(response_size=1, payload=payload(1))
    _, call = client.stub.UnaryCall.with_call(asked, metadata=(initial, trailing))
    check(call)
    replies = client.stub.FullDuplexCall(iter([ping(1, 1)]), metadata=(initial, trailing))
    assert len(list(replies)) == 1
    check(replies)


@case
def status_code_and_message(client):
    text = "test status message"
    status = pb.EchoStatus(code=2, message=text)
    unknown = grpc.StatusCode.UNKNOWN
    is_failure(lambda: client.stub.UnaryCall(pb.SimpleRequest(response_status=status)), unknown, text)
    asked = pb.StreamingOutputCallRequest(response_status=status)
    is_failure(lambda: list(client.stub.FullDuplexCall(iter([asked]))), unknown, text)


@case
def special_status_message(client):
    text = "\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈\t\n"
    asked = pb.SimpleRequest(response_status=pb.EchoStatus(code=2, message=text))
    is_failure(lambda: client.stub.UnaryCall(asked), grpc.StatusCode.UNKNOWN, text)


@case
def unimplemented_method(client):
    is_failure(lambda: client.stub.UnimplementedCall(pb.Empty()), grpc.StatusCode.UNIMPLEMENTED)


@case
def unimplemented_service(client):
    stub = services.UnimplementedServiceStub(client.channel)
    is_failure(lambda: stub.UnimplementedCall(pb.Empty()), grpc.StatusCode.UNIMPLEMENTED)


@case
def cancel_after_begin(client):
    sent = Sent()
    call = client.stub.StreamingInputCall.future(iter(sent))
    call.cancel()
    assert call.cancelled()
    is_failure(call.result, grpc.StatusCode.CANCELLED)
    sent.close()


@case
def cancel_after_first_response(client):
    sent = Sent()
    replies = client.stub.FullDuplexCall(iter(sent))
    sent.send(ping(27182, 31415))
    assert len(next(replies).payload.body) == 31415
    replies.cancel()
    is_failure(lambda: next(replies), grpc.StatusCode.CANCELLED)
    sent.close()


@case
def timeout_on_sleeping_server(client):
    sent = Sent()
    replies = client.stub.FullDuplexCall(iter(sent), timeout=0.001)
    sent.send(pb.StreamingOutputCallRequest(payload=payload(27182)))
    is_failure(lambda: next(replies), grpc.StatusCode.DEADLINE_EXCEEDED)
    sent.close()


@case
def concurrent_large_unary(client):
    with concurrent.futures.ThreadPoolExecutor(100) as pool:
        collections.deque(pool.map(lambda _: large(client.stub), range(100)), maxlen=0)


@case
def rpc_soak(client):
    for _ in range(client.flags.rpc_soak):
        large(client.stub)


@case
def channel_soak(client):
    for _ in range(client.flags.channel_soak):
        # Channels with the same settings share a connection otherwise.
        with client.connect([("grpc.use_local_subchannel_pool", 1)]) as channel:
            large(services.TestServiceStub(channel))


class Client:
    def __init__(self, flags):
        self.flags = flags
        self.channel = self.connect()
        self.stub = services.TestServiceStub(self.channel)

    def connect(self, options=()):
        with open(self.flags.ca_file, "rb") as file:
            credentials = grpc.ssl_channel_credentials(file.read())
        options = [("grpc.ssl_target_name_override", self.flags.server_host_override), *options]
        return grpc.secure_channel(f"{self.flags.server_host}:{self.flags.server_port}", credentials, options)


def main():
    parser = argparse.ArgumentParser()
    for flag in ["server_host", "server_port", "server_host_override", "use_tls", "ca_file", "test_case"]:
        parser.add_argument(f"--{flag}", required=True)
    parser.add_argument("--rpc_soak", type=int, default=10)
    parser.add_argument("--channel_soak", type=int, default=10)
    client = Client(parser.parse_args())
    for name in client.flags.test_case.split(","):
        try:
            CASES[name](client)
            print(f"passed {name}", flush=True)
        except Exception as error:
            text = " ".join(f"{type(error).__name__}: {error}".split())
            print(f"failed {name}: {text}", flush=True)


main()
