// gRPC's interoperability cases by @grpc/grpc-js: node interop.js --server_host=… --test_case=CASE,CASE…
//
// Flags as those of gRPC's own clients. Writes a line for each case: "passed CASE", or "failed CASE: why".
"use strict";

const assert = require("node:assert");
const fs = require("node:fs");
const path = require("node:path");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const flags = Object.fromEntries(process.argv.slice(2).map((flag) => flag.replace(/^--/, "").split("=", 2)));
const { testing } = grpc.loadPackageDefinition(
  loader.loadSync(path.join(__dirname, "../../proto/interop.proto"), { keepCase: true })).grpc;

const requests = [27182, 8, 1828, 45904];
const responses = [31415, 9, 2653, 58979];
const payload = (size) => ({ body: Buffer.alloc(size) });
const ping = (request, response) => ({ response_parameters: [{ size: response }], payload: payload(request) });

function connect(Service, more = {}) {
  const credentials = grpc.credentials.createSsl(fs.readFileSync(flags.ca_file));
  return new Service(`${flags.server_host}:${flags.server_port}`, credentials, {
    "grpc.ssl_target_name_override": flags.server_host_override,
    "grpc.default_authority": flags.server_host_override,
    ...more,
  });
}

const client = connect(testing.TestService);

/** A unary call: resolves to its reply, headers and trailers. */
function unary(stub, method, request, metadata = new grpc.Metadata()) {
  return new Promise((resolve, reject) => {
    let headers, reply;
    const call = stub[method](request, metadata, { deadline: Date.now() + 60_000 }, (error, value) =>
      error ? reject(error) : (reply = value));
    call.on("metadata", (value) => (headers = value));
    call.on("status", (status) => status.code === 0 && resolve({ reply, headers, trailers: status.metadata }));
  });
}

async function large(stub, more = {}) {
  const { reply } = await unary(stub, "UnaryCall", { response_size: 314159, payload: payload(271828), ...more });
  assert.strictEqual(reply.payload.body.length, 314159);
}

/** The next replies of a stream: a function that resolves to one after the other, and to undefined at the end. */
function replies(call) {
  const iterator = call[Symbol.asyncIterator]();
  return async () => (await iterator.next()).value;
}

const size = (reply) => reply.payload.body.length;

const cases = {
  empty_unary: () => unary(client, "EmptyCall", {}),

  large_unary: () => large(client),

  async client_compressed_unary() {
    const compressing = connect(testing.TestService, {
      "grpc.default_compression_algorithm": grpc.compressionAlgorithms.gzip,
    });
    const compressed = { expect_compressed: { value: true } };
    await assert.rejects(large(client, compressed), { code: grpc.status.INVALID_ARGUMENT });
    await large(compressing, compressed);
    await large(client, { expect_compressed: { value: false } });
  },

  // Whether a message was compressed, grpc-js tells nobody: what was is read right.
  async server_compressed_unary() {
    for (const value of [true, false]) await large(client, { response_compressed: { value } });
  },

  client_streaming: () => new Promise((resolve, reject) => {
    const call = client.StreamingInputCall((error, reply) => {
      if (error) return reject(error);
      resolve(assert.strictEqual(reply.aggregated_payload_size, 74922));
    });
    for (const size of requests) call.write({ payload: payload(size) });
    call.end();
  }),

  async server_streaming() {
    const sizes = [];
    const call = client.StreamingOutputCall({ response_parameters: responses.map((size) => ({ size })) });
    for await (const reply of call) sizes.push(size(reply));
    assert.deepStrictEqual(sizes, responses);
  },

  async ping_pong() {
    const call = client.FullDuplexCall();
    const next = replies(call);
    for (const [number, request] of requests.entries()) {
      call.write(ping(request, responses[number]));
      assert.strictEqual(size(await next()), responses[number]);
    }
    call.end();
    assert.strictEqual(await next(), undefined);
  },

  async empty_stream() {
    const call = client.FullDuplexCall();
    call.end();
    for await (const reply of call) assert.fail(`a reply: ${reply}`);
  },

  async custom_metadata() {
    const [initial, trailing] = ["x-grpc-test-echo-initial", "x-grpc-test-echo-trailing-bin"];
    const metadata = new grpc.Metadata();
    metadata.set(initial, "test_initial_metadata_value");
    metadata.set(trailing, Buffer.from([0xab, 0xab, 0xab]));
    const check = (headers, trailers) => {
      assert.deepStrictEqual(headers.get(initial), metadata.get(initial));
      assert.deepStrictEqual(trailers.get(trailing), metadata.get(trailing));
    };
    const { headers, trailers } = await unary(
      client, "UnaryCall", { response_size: 1, payload: payload(1) }, metadata);
    check(headers, trailers);
    await new Promise((resolve, reject) => {
      const call = client.FullDuplexCall(metadata);
      let headers;
      call.on("metadata", (value) => (headers = value)).on("data", () => {}).on("error", reject);
      call.on("status", (status) => resolve([headers, status.metadata]));
      call.write(ping(1, 1));
      call.end();
    }).then(([headers, trailers]) => check(headers, trailers));
  },

  async status_code_and_message() {
    const response_status = { code: 2, message: "test status message" };
    const failure = { code: 2, details: response_status.message };
    await assert.rejects(unary(client, "UnaryCall", { response_status }), failure);
    const call = client.FullDuplexCall();
    call.write({ response_status });
    call.end();
    await assert.rejects(replies(call)(), failure);
  },

  async special_status_message() {
    const message = "\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈\t\n";
    const call = unary(client, "UnaryCall", { response_status: { code: 2, message } });
    await assert.rejects(call, { code: 2, details: message });
  },

  unimplemented_method: () =>
    assert.rejects(unary(client, "UnimplementedCall", {}), { code: grpc.status.UNIMPLEMENTED }),

  unimplemented_service: () =>
    assert.rejects(unary(connect(testing.UnimplementedService), "UnimplementedCall", {}), {
      code: grpc.status.UNIMPLEMENTED,
    }),

  async cancel_after_begin() {
    const failure = await new Promise((resolve) => client.StreamingInputCall(resolve).cancel());
    assert.strictEqual(failure.code, grpc.status.CANCELLED);
  },

  async cancel_after_first_response() {
    const call = client.FullDuplexCall();
    const next = replies(call);
    call.write(ping(27182, 31415));
    assert.strictEqual(size(await next()), 31415);
    const end = next();
    call.cancel();
    await assert.rejects(end, { code: grpc.status.CANCELLED });
  },

  async timeout_on_sleeping_server() {
    const call = client.FullDuplexCall({ deadline: Date.now() + 1 });
    call.write({ payload: payload(27182) });
    await assert.rejects(replies(call)(), { code: grpc.status.DEADLINE_EXCEEDED });
  },

  concurrent_large_unary: () => Promise.all(Array.from({ length: 100 }, () => large(client))),

  async rpc_soak() {
    for (let count = 0; count < Number(flags.rpc_soak); count++) await large(client);
  },

  async channel_soak() {
    for (let count = 0; count < Number(flags.channel_soak); count++) {
      // Channels with the same settings share a connection otherwise.
      const other = connect(testing.TestService, { "grpc.use_local_subchannel_pool": 1 });
      await large(other);
      other.close();
    }
  },
};

(async () => {
  for (const name of flags.test_case.split(",")) {
    try {
      await cases[name]();
      console.log(`passed ${name}`);
    } catch (error) {
      console.log(`failed ${name}: ${String(error.stack ?? error).replace(/\s+/g, " ")}`);
    }
  }
  process.exit(0);
})();
