'use strict';
// azure-iot-device with MqttWs, unmodified, through Azure's own front, which asks for a certificate by a renegotiation.
//
// tests/integration/front.rs runs it: `front.js CONNECTION_STRING PORT CERTIFICATE KEY`. The client dials port 443 and
// no other; a proxy leads it to the front's.

const fs = require('node:fs');
const { Client, Message, NoRetry } = { ...require('azure-iot-common'), ...require('azure-iot-device') };
const { MqttWs } = require('azure-iot-device-mqtt');
const { assert, fields, refused, run } = require('./harness');
const { Tunnel, proxy } = require('./tunnel');

const [text, port, certificate, key] = process.argv.slice(2);

async function connecting(words, options = {}) {
  const client = Client.fromConnectionString(words, MqttWs);
  client.setRetryPolicy(new NoRetry());
  const webSocketAgent = new Tunnel((await proxy(`127.0.0.1:${port}`)).port);
  await client.setOptions({ mqtt: { webSocketAgent }, ...options });
  return client;
}

async function comes_in_by_a_key() {
  const client = await connecting(text);
  await client.open();
  await client.sendEvent(new Message('here'));
  await client.close();
}

/** The front sees the certificate, and has no way to hand it to the hub behind it. */
async function shows_its_certificate() {
  const { HostName, DeviceId } = fields(text);
  const [cert, own] = [certificate, key].map((file) => fs.readFileSync(file, 'utf8'));
  const client = await connecting(`HostName=${HostName};DeviceId=${DeviceId};x509=true`, { cert, key: own });
  assert.equal((await refused(client.open())).name, 'UnauthorizedError');
}

run('azure-iot-device', [comes_in_by_a_key, shows_its_certificate]);
