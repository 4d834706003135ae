"""Python's grpcio through the edge proxy: python check.py HOST:PORT CA.PEM, in the repository's folder."""

import os
import sys
import time

import grpc

# Where .proto files are looked for.
sys.path.insert(0, os.getcwd())

echo, echo_services = grpc.protos_and_services("proto/api/echo.proto")
reverse, reverse_services = grpc.protos_and_services("proto/api/reverse.proto")
test, test_services = grpc.protos_and_services("tests/proto/test.proto")
_, nobody_services = grpc.protos_and_services("tests/clients/nobody.proto")
silent, silent_services = grpc.protos_and_services("tests/clients/silent.proto")
nothing = grpc.protos("tests/clients/nobody.proto").Nothing

CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


def fails(code, call):
    try:
        call()
    except grpc.RpcError as error:
        assert error.code() == code, error
        return error
    raise AssertionError("it didn't fail")


@check
def both_services_and_two_hosts_each(channel):
    for stub, request, content in [
        (echo_services.EchoStub(channel).Echo, echo.EchoRequest(content="Grüße"), "Grüße"),
        (reverse_services.ReverseStub(channel).Reverse, reverse.ReverseRequest(content="Grüße"), "eßürG"),
    ]:
        hosts = []
        for _ in range(10):
            reply, call = stub.with_call(request, timeout=10)
            assert reply.content == content, reply
            headers = dict(call.initial_metadata())
            assert headers["server"] == "edge-proxy", headers
            assert "date" in headers and "x-envoy-upstream-service-time" in headers, headers
            hosts.append(headers["hostname"])
        assert len(set(hosts)) == 2 and hosts.count(hosts[0]) == 5, hosts


@check
def metadata_both_ways(channel):
    sent = (("x-test-give", "given"), ("x-test-give-bin", b"\x00\xff\x01"))
    _, call = test_services.TestStub(channel).Unary.with_call(test.Message(), metadata=sent, timeout=10)
    headers = dict(call.initial_metadata())
    assert headers["x-test-give"] == "given", headers
    assert headers["x-test-give-bin"] == b"\x00\xff\x01", headers


@check
def an_unknown_service(channel):
    stub = nobody_services.NobodyStub(channel)
    fails(grpc.StatusCode.UNIMPLEMENTED, lambda: stub.Call(nothing(), timeout=10))


@check
def a_status_and_its_message(channel):
    stub = test_services.TestStub(channel)
    metadata = (("x-test-status", "9"),)
    error = fails(
        grpc.StatusCode.FAILED_PRECONDITION,
        lambda: stub.Unary(test.Message(), metadata=metadata, timeout=10),
    )
    assert error.details() == "failed, as the test says: 100 %", error.details()


@check
def a_deadline(channel):
    # The client's clock ends it, or the proxy's.
    stub = silent_services.SilentStub(channel)
    start = time.monotonic()
    fails(grpc.StatusCode.DEADLINE_EXCEEDED, lambda: stub.Call(silent.Question(), timeout=0.3))
    assert 0.25 < time.monotonic() - start < 10


@check
def all_four_kinds(channel):
    stub = test_services.TestStub(channel)
    data = bytes(range(256)) * 12_000
    assert stub.Unary(test.Message(data=data), timeout=30).data == data
    joined = stub.Upload((test.Message(data=b"%03d" % number) for number in range(200)), timeout=30)
    assert len(joined.data) == 600, len(joined.data)
    replies = stub.Download(test.Message(data=b"x"), metadata=(("x-test-replies", "500"),), timeout=30)
    assert sum(len(reply.data) for reply in replies) == 500
    messages = [test.Message(data=str(number).encode()) for number in range(100)]
    assert [reply.data for reply in stub.Chat(iter(messages), timeout=30)] == [one.data for one in messages]


@check
def a_cancelled_stream_leaves_its_connection_in_peace(channel):
    stub = test_services.TestStub(channel)
    for _ in range(30):
        replies = stub.Download(
            test.Message(), metadata=(("x-test-replies", "1000"), ("x-test-late-gate", "never")), timeout=30
        )
        next(replies)
        replies.cancel()
    assert stub.Unary(test.Message(data=b"alive"), timeout=10).data == b"alive"


def main(address, ca):
    with open(ca, "rb") as file:
        credentials = grpc.ssl_channel_credentials(file.read())
    # The certificate is for this name, wherever it is served.
    options = [("grpc.ssl_target_name_override", "grpc.example.com")]
    with grpc.secure_channel(address, credentials, options) as channel:
        for function in CHECKS:
            function(channel)
    print(f"python grpcio {grpc.__version__}: {len(CHECKS)} checks passed")


main(*sys.argv[1:])
