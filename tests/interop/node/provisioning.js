'use strict';
// azure-iot-provisioning-device over MQTT and WebSocket, with the packages for keys and certificates, unmodified.

const { execFileSync } = require('node:child_process');
const { createHmac } = require('node:crypto');
const fs = require('node:fs');
const path = require('node:path');
const { Client, Message } = require('azure-iot-device');
const device = require('azure-iot-device-mqtt');
const { ProvisioningDeviceClient } = require('azure-iot-provisioning-device');
const { Mqtt, MqttWs } = require('azure-iot-provisioning-device-mqtt');
const { SymmetricKeySecurityClient } = require('azure-iot-security-symmetric-key');
const { X509Security } = require('azure-iot-security-x509');
const { assert, called, hub, refused, run } = require('./harness');

/** Registers, and waits until the client has let go: its callback comes after UNSUBSCRIBE and DISCONNECT. */
function register(scope, security, transport = new Mqtt(), payload = undefined) {
  const client = ProvisioningDeviceClient.create(hub.address, scope, transport, security);
  if (payload) client.setProvisioningPayload(payload);
  return called((done) => client.register(done));
}

async function recorded(registration) {
  const all = await hub.admin('registrations');
  return all.filter((one) => one.registrationId === registration).at(-1);
}

/** What was assigned can be used. */
async function works(result, key) {
  assert.equal(result.assignedHub, hub.address);
  const text = `HostName=${result.assignedHub};DeviceId=${result.deviceId};SharedAccessKey=${key}`;
  const client = Client.fromConnectionString(text, device.Mqtt);
  await client.open();
  await client.sendEvent(new Message('here'));
  assert.equal((await hub.admin(`telemetry/${result.deviceId}`)).length, 1);
  await client.close();
}

async function registers_by_a_key_and_hands_over_a_payload() {
  const { IdScope, SymmetricKey } = hub.enrol('node-key', '--returns', '{"line": 4}');
  const security = new SymmetricKeySecurityClient('node-key', SymmetricKey);
  const result = await register(IdScope, security, new Mqtt(), { site: 'Berlin' });
  assert.deepEqual([result.deviceId, result.status, result.payload], ['node-key', 'assigned', { line: 4 }]);
  assert.deepEqual((await recorded('node-key')).payload, { site: 'Berlin' });
  await works(result, SymmetricKey);
}

async function registers_by_a_key_derived_from_a_group_s() {
  const { IdScope, GroupKey } = hub.enrol('node-fleet', '--group');
  const derived = createHmac('SHA256', Buffer.from(GroupKey, 'base64')).update('node-17').digest('base64');
  const result = await register(IdScope, new SymmetricKeySecurityClient('node-17', derived));
  assert.equal((await recorded('node-17')).enrollment, 'node-fleet');
  await works(result, derived);
}

async function registers_by_a_certificate() {
  const [cert, key] = ['pem', 'key'].map((end) => path.join(hub.dir, `node-cert.${end}`));
  const options = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '2'];
  execFileSync('openssl', ['req', '-x509', ...options, '-subj', '/CN=node-cert', '-out', cert, '-keyout', key], { stdio: 'ignore' });
  const { IdScope } = hub.enrol('node-cert', '--certificate', cert);
  const pair = { cert: fs.readFileSync(cert, 'utf8'), key: fs.readFileSync(key, 'utf8') };
  const result = await register(IdScope, new X509Security('node-cert', pair));
  assert.deepEqual([result.deviceId, result.assignedHub], ['node-cert', hub.address]);
  const client = Client.fromConnectionString(`HostName=${hub.address};DeviceId=node-cert;x509=true`, device.Mqtt);
  await client.setOptions(pair);
  await client.open();
  await client.close();
}

async function registers_over_websocket() {
  const { IdScope, SymmetricKey } = hub.enrol('node-web');
  const result = await register(IdScope, new SymmetricKeySecurityClient('node-web', SymmetricKey), new MqttWs());
  await works(result, SymmetricKey);
}

async function asks_again_while_it_is_assigned_and_throttled() {
  const { IdScope, SymmetricKey } = hub.enrol('node-slow');
  hub.tool('enrollment', 'set', 'node-slow', '--polls', '2');
  await hub.admin('faults', 'PUT', JSON.stringify({ mqtt: { throttleRegistrations: 1 } }));
  const result = await register(IdScope, new SymmetricKeySecurityClient('node-slow', SymmetricKey));
  assert.equal(result.deviceId, 'node-slow');
}

async function is_led_to_another_hub() {
  const { IdScope, SymmetricKey } = hub.enrol('node-away');
  hub.tool('enrollment', 'set', 'node-away', '--assign-to', 'other.azure-devices.net', '--device', 'moved');
  const result = await register(IdScope, new SymmetricKeySecurityClient('node-away', SymmetricKey));
  assert.deepEqual([result.assignedHub, result.deviceId], ['other.azure-devices.net', 'moved']);
}

async function is_told_why_not() {
  const { IdScope, SymmetricKey } = hub.enrol('node-unlucky', '--fail', 'no hub fits');
  const security = new SymmetricKeySecurityClient('node-unlucky', SymmetricKey);
  await refused(register(IdScope, security));
  assert.equal((await recorded('node-unlucky')).status, 'failed');
  hub.tool('enrollment', 'set', 'node-unlucky', '--disabled');
  await refused(register(IdScope, security));
  assert.equal((await recorded('node-unlucky')).status, 'disabled');
}

async function is_refused_with_a_wrong_key() {
  const { IdScope } = hub.enrol('node-impostor');
  const refusal = await refused(register(IdScope, new SymmetricKeySecurityClient('node-impostor', 'd3Jvbmd3cm9uZw==')));
  assert(refusal instanceof Error);
}

run('azure-iot-provisioning-device', [
  registers_by_a_key_and_hands_over_a_payload,
  registers_by_a_key_derived_from_a_group_s,
  registers_by_a_certificate,
  registers_over_websocket,
  asks_again_while_it_is_assigned_and_throttled,
  is_led_to_another_hub,
  is_told_why_not,
  is_refused_with_a_wrong_key,
]);
