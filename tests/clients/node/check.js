// @grpc/grpc-js through the edge proxy: node check.js HOST:PORT CA.PEM REPOSITORY
"use strict";

const assert = require("node:assert");
const fs = require("node:fs");
const path = require("node:path");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const [address, ca, repository] = process.argv.slice(2);

function load(file) {
  return grpc.loadPackageDefinition(loader.loadSync(path.join(repository, file)));
}

const credentials = grpc.credentials.createSsl(fs.readFileSync(ca));
// The certificate is for this name, wherever it is served.
const options = {
  "grpc.ssl_target_name_override": "grpc.example.com",
  "grpc.default_authority": "grpc.example.com",
};
const client = (Service) => new Service(address, credentials, options);
const echo = client(load("proto/api/echo.proto").api.Echo);
const reverse = client(load("proto/api/reverse.proto").api.Reverse);
const test = client(load("tests/proto/test.proto").e2e.Test);
const silent = client(load("tests/clients/silent.proto").e2e.Silent);
const nobody = client(load("tests/clients/nobody.proto").api.Nobody);

function metadata(values = {}) {
  const metadata = new grpc.Metadata();
  for (const [name, value] of Object.entries(values)) metadata.set(name, value);
  return metadata;
}

const soon = (milliseconds = 20_000) => ({ deadline: Date.now() + milliseconds });

/** A unary call: resolves to its reply and headers. */
function unary(service, method, request, headers = {}, deadline = soon()) {
  return new Promise((resolve, reject) => {
    let received;
    const call = service[method](request, metadata(headers), deadline, (error, reply) =>
      error ? reject(error) : resolve({ reply, headers: received }));
    call.on("metadata", (metadata) => (received = metadata.getMap()));
  });
}

/** All replies of a stream. */
async function all(call) {
  const replies = [];
  for await (const reply of call) replies.push(reply);
  return replies;
}

const checks = {
  async "both services and two hosts each"() {
    for (const [service, method, content] of [[echo, "Echo", "Grüße"], [reverse, "Reverse", "eßürG"]]) {
      const hosts = [];
      for (let count = 0; count < 10; count++) {
        const { reply, headers } = await unary(service, method, { content: "Grüße" });
        assert.strictEqual(reply.content, content);
        assert.strictEqual(headers.server, "edge-proxy");
        hosts.push(headers.hostname);
      }
      assert.strictEqual(new Set(hosts).size, 2, hosts.join());
    }
  },

  async "metadata both ways"() {
    const binary = Buffer.from([0, 255, 1]);
    const { headers } = await unary(test, "Unary", {}, { "x-test-give": "given", "x-test-give-bin": binary });
    assert.strictEqual(headers["x-test-give"], "given");
    assert.deepStrictEqual(headers["x-test-give-bin"], binary);
  },

  async "an unknown service"() {
    await assert.rejects(unary(nobody, "Call", {}), { code: grpc.status.UNIMPLEMENTED });
  },

  async "a status and its message"() {
    const failure = { code: grpc.status.FAILED_PRECONDITION, details: "failed, as the test says: 100 %" };
    await assert.rejects(unary(test, "Unary", {}, { "x-test-status": "9" }), failure);
  },

  async "a deadline"() {
    // The client's clock ends it, or the proxy's.
    await assert.rejects(unary(silent, "Call", {}, {}, soon(300)), { code: grpc.status.DEADLINE_EXCEEDED });
  },

  async "all four kinds"() {
    const data = Buffer.alloc(3_000_000, "0123456789");
    const { reply } = await unary(test, "Unary", { data });
    assert.ok(reply.data.equals(data));

    const joined = await new Promise((resolve, reject) => {
      const call = test.Upload(metadata(), soon(), (error, reply) => (error ? reject(error) : resolve(reply)));
      for (let count = 0; count < 200; count++) call.write({ data: Buffer.from("abc") });
      call.end();
    });
    assert.strictEqual(joined.data.length, 600);

    const replies = await all(test.Download({ data: Buffer.from("x") }, metadata({ "x-test-replies": "500" }), soon()));
    assert.strictEqual(replies.length, 500);

    const chat = test.Chat(metadata(), soon());
    for (let count = 0; count < 100; count++) chat.write({ data: Buffer.from(String(count)) });
    chat.end();
    const answers = (await all(chat)).map((reply) => reply.data.toString());
    assert.deepStrictEqual(answers, Array.from({ length: 100 }, (_, count) => String(count)));
  },
};

(async () => {
  for (const [name, check] of Object.entries(checks)) {
    try {
      await check();
    } catch (error) {
      console.error(`node: ${name}:`, error);
      process.exit(1);
    }
  }
  const { version } = require("@grpc/grpc-js/package.json");
  console.log(`node @grpc/grpc-js ${version}: ${Object.keys(checks).length} checks passed`);
  process.exit(0);
})();
