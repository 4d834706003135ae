// A backend of @grpc/grpc-js: api.Echo and e2e.Test/Unary return what they are given. Prints its address.
"use strict";

const path = require("node:path");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const load = (file) => grpc.loadPackageDefinition(loader.loadSync(path.join(__dirname, "../..", file)));
const giveBack = (call, callback) => callback(null, call.request);

const server = new grpc.Server();
server.addService(load("../proto/api/echo.proto").api.Echo.service, { Echo: giveBack });
server.addService(load("proto/test.proto").e2e.Test.service, { Unary: giveBack });
server.bindAsync("127.0.0.1:0", grpc.ServerCredentials.createInsecure(), (error, port) => {
  if (error) throw error;
  console.log(`127.0.0.1:${port}`);
});
