'use strict';
// azure-iot-provisioning-device over MQTT and WebSocket, with the packages for keys and certificates, unmodified.

const { createHmac } = require('node:crypto');
const { Client, Message } = require('azure-iot-device');
const device = require('azure-iot-device-mqtt');
const { ProvisioningDeviceClient } = require('azure-iot-provisioning-device');
const { Mqtt, MqttWs } = require('azure-iot-provisioning-device-mqtt');
const { SymmetricKeySecurityClient } = require('azure-iot-security-symmetric-key');
const { X509Security } = require('azure-iot-security-x509');
const { assert, called, certificate, hub, refused, run } = require('./harness');

/** Assigned at the first question, which the clients put off for as long as they are told. */
const AT_ONCE = ['--polls', '0'];

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
  const { IdScope, GroupKey } = hub.enrol('node-fleet', '--group', ...AT_ONCE);
  const derived = createHmac('SHA256', Buffer.from(GroupKey, 'base64')).update('node-17').digest('base64');
  const result = await register(IdScope, new SymmetricKeySecurityClient('node-17', derived));
  assert.equal((await recorded('node-17')).enrollment, 'node-fleet');
  await works(result, derived);
}

/** The device's own certificate opens what it was assigned. */
async function opens({ deviceId, assignedHub }, pair, transport = device.Mqtt) {
  assert.equal(assignedHub, hub.address);
  const client = Client.fromConnectionString(`HostName=${assignedHub};DeviceId=${deviceId};x509=true`, transport);
  await client.setOptions(pair);
  await client.open();
  await client.sendEvent(new Message('here'));
  assert.equal((await hub.admin(`telemetry/${deviceId}`)).length, 1);
  await client.close();
}

async function registers_by_a_certificate() {
  const own = certificate('node-cert');
  const { IdScope } = hub.enrol('node-cert', '--certificate', own.file, ...AT_ONCE);
  const result = await register(IdScope, new X509Security('node-cert', own.pair));
  assert.equal(result.deviceId, 'node-cert');
  await opens(result, own.pair);
  const other = certificate('node-other');
  await refused(register(IdScope, new X509Security('node-cert', other.pair)));
}

async function registers_by_a_certificate_of_a_group_s_authority() {
  const authority = certificate('node-authority');
  const { IdScope } = hub.enrol('node-line', '--group', '--certificate', authority.file, ...AT_ONCE);
  await Promise.all([['node-21', Mqtt, device.Mqtt], ['node-22', MqttWs, device.MqttWs]].map(async ([name, Transport, kind]) => {
    const leaf = certificate(name, authority);
    const result = await register(IdScope, new X509Security(name, leaf.pair), new Transport());
    assert.equal(result.deviceId, name);
    assert.equal((await recorded(name)).enrollment, 'node-line');
    await opens(result, leaf.pair, kind);
  }));
  // The common name is the registration id, and no other authority will do.
  await refused(register(IdScope, new X509Security('node-23', certificate('node-24', authority).pair)));
  await refused(register(IdScope, new X509Security('node-25', certificate('node-25', certificate('node-forger')).pair)));
}

async function registers_over_websocket() {
  const { IdScope, SymmetricKey } = hub.enrol('node-web', ...AT_ONCE);
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
  const { IdScope, SymmetricKey } = hub.enrol('node-away', ...AT_ONCE);
  hub.tool('enrollment', 'set', 'node-away', '--assign-to', 'other.azure-devices.net', '--device', 'moved');
  const result = await register(IdScope, new SymmetricKeySecurityClient('node-away', SymmetricKey));
  assert.deepEqual([result.assignedHub, result.deviceId], ['other.azure-devices.net', 'moved']);
}

async function is_told_why_not() {
  const { IdScope, SymmetricKey } = hub.enrol('node-unlucky', '--fail', 'no hub fits', ...AT_ONCE);
  const security = new SymmetricKeySecurityClient('node-unlucky', SymmetricKey);
  await refused(register(IdScope, security));
  assert.equal((await recorded('node-unlucky')).status, 'failed');
  hub.tool('enrollment', 'set', 'node-unlucky', '--disabled');
  await refused(register(IdScope, security));
  assert.equal((await recorded('node-unlucky')).status, 'disabled');
}

async function ends_a_registration_that_it_cancels() {
  const { IdScope, SymmetricKey } = hub.enrol('node-hasty', '--polls', '1000');
  const security = new SymmetricKeySecurityClient('node-hasty', SymmetricKey);
  const client = ProvisioningDeviceClient.create(hub.address, IdScope, new Mqtt(), security);
  const outcome = refused(called((done) => client.register(done)));
  await called((done) => client.cancel(done));
  assert.equal((await outcome).name, 'OperationCancelledError');
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
  registers_by_a_certificate_of_a_group_s_authority,
  ends_a_registration_that_it_cancels,
  registers_over_websocket,
  asks_again_while_it_is_assigned_and_throttled,
  is_led_to_another_hub,
  is_told_why_not,
  is_refused_with_a_wrong_key,
]);
