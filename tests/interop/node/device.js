'use strict';
// azure-iot-device with azure-iot-device-mqtt, unmodified, over MQTT and over WebSocket: what a device does all day.

const { execFileSync } = require('node:child_process');
const fs = require('node:fs');
const path = require('node:path');
const { NoRetry, SharedAccessSignature } = require('azure-iot-common');
const { Client, Message, ModuleClient } = require('azure-iot-device');
const { Mqtt, MqttWs } = require('azure-iot-device-mqtt');
const service = require('azure-iothub');
const { assert, called, eventually, fields, hub, refused, run, within } = require('./harness');

const registry = service.Registry.fromConnectionString(hub.service);
const caller = service.Client.fromConnectionString(hub.service);
let transport;
let device;

async function invoke(methodName, payload, deviceId = 'node') {
  const call = { methodName, payload, responseTimeoutInSeconds: 20, connectTimeoutInSeconds: 20 };
  return (await caller.invokeDeviceMethod(deviceId, call)).result;
}

async function state(deviceId) {
  return (await registry.getTwin(deviceId)).responseBody.connectionState;
}

async function reported() {
  return (await registry.getTwin('node')).responseBody.properties.reported;
}

async function opens_by_its_key() {
  const id = transport === Mqtt ? 'by-mqtt' : 'by-ws';
  const other = Client.fromConnectionString(hub.tool('device', 'add', id), transport);
  await other.open();
  assert.equal(await state(id), 'Connected');
  await other.close();
  await eventually(async () => (await state(id)) === 'Disconnected');
}

async function sends_telemetry() {
  const message = new Message(JSON.stringify({ temperature: 21 }));
  message.messageId = 'm-1';
  message.contentType = 'application/json';
  message.contentEncoding = 'utf-8';
  message.properties.add('alert', 'a b&c');
  await device.sendEvent(message);
  const seen = (await hub.admin('telemetry/node')).at(-1);
  const bag = new Map(seen.properties.split('&').map((pair) => pair.split('=').map(decodeURIComponent)));
  assert.deepEqual([bag.get('$.mid'), bag.get('$.ct'), bag.get('$.ce'), bag.get('alert')],
    ['m-1', 'application/json', 'utf-8', 'a b&c']);
}

async function answers_methods() {
  const got = await invoke('echo', { uri: 'https://x/y' });
  assert.deepEqual([got.status, got.payload], [200, { got: { uri: 'https://x/y' } }]);
  assert.deepEqual([(await invoke('refuse', null)).status], [409]);
}

async function reads_its_twin_and_reports() {
  const twin = await device.getTwin();
  assert(twin.properties.desired.$version >= 1);
  await called((done) => twin.properties.reported.update({ fw: { state: 'idle', old: null } }, done));
  assert.deepEqual((await reported()).fw, { state: 'idle' });
  const bad = await refused(called((done) => twin.properties.reported.update({ 'a.b': 1 }, done)));
  assert(bad instanceof Error);
}

async function hears_of_desired_properties() {
  const twin = await device.getTwin();
  const seen = [];
  twin.on('properties.desired.wanted', (wanted) => seen.push(wanted));
  // The client subscribes behind the caller's back, and what is written before that is never queued: again and again.
  let version = 0;
  await eventually(async () => {
    version += 1;
    await registry.updateTwin('node', { properties: { desired: { wanted: { version } } } }, '*');
    return seen.some((wanted) => wanted?.version > 0);
  });
  await registry.updateTwin('node', { properties: { desired: { wanted: { version: null, other: 2 } } } }, '*');
  await eventually(() => seen.some((wanted) => wanted?.other === 2 && wanted.version === null));
  assert.deepEqual(twin.properties.desired.wanted, { other: 2 });
  await registry.updateTwin('node', { properties: { desired: { wanted: null } } }, '*');
}

async function takes_no_message_and_is_granted_its_subscription() {
  const got = [];
  device.on('message', (message) => got.push(message));
  // The subscription is made behind the caller's back; what follows shows that the connection stands.
  assert.equal((await invoke('echo', 1)).payload.got, 1);
  device.removeAllListeners('message');
  assert.equal((await invoke('echo', 2)).payload.got, 2);
  assert.deepEqual(got, []);
}

async function comes_back_when_it_is_dropped() {
  const before = (await hub.admin('history/node')).length;
  await hub.admin('connections', 'DELETE');
  // A call may still meet the connection that is going down.
  await eventually(async () => (await invoke('echo', 'again').catch(() => null))?.payload.got === 'again', 50);
  assert.equal(await state('node'), 'Connected');
  const twin = await device.getTwin();
  await called((done) => twin.properties.reported.update({ back: before }, done));
  assert.equal((await reported()).back, before);
}

async function renews_its_token() {
  const { DeviceId, HostName, SharedAccessKey } = fields(hub.tool('device', 'add', `token-${transport.name}`));
  const token = (seconds) => SharedAccessSignature.create(
    `${HostName}/devices/${DeviceId}`, null, SharedAccessKey, Math.floor(Date.now() / 1000) + seconds).toString();
  const other = Client.fromSharedAccessSignature(token(60), transport);
  await other.open();
  await other.updateSharedAccessSignature(token(600));
  await other.sendEvent(new Message('after'));
  assert.equal((await hub.admin(`telemetry/${DeviceId}`)).length, 1);
  await other.close();
}

async function is_refused_with_a_wrong_key() {
  const wrong = hub.tool('device', 'add', `wrong-${transport.name}`).replace(/SharedAccessKey=.*/, 'SharedAccessKey=d3Jvbmd3cm9uZw==');
  const stranger = Client.fromConnectionString(wrong, transport);
  stranger.setRetryPolicy(new NoRetry());
  assert.equal((await refused(stranger.open())).name, 'UnauthorizedError');
}

async function works_as_a_module() {
  const id = `host-${transport.name}`;
  hub.tool('device', 'add', id);
  const module = ModuleClient.fromConnectionString(hub.tool('device', 'add', `${id}/updater`), transport);
  await module.open();
  module.onMethod('echo', (request, response) => response.send(200, request.payload));
  const twin = await module.getTwin();
  await called((done) => twin.properties.reported.update({ m: 1 }, done));
  assert.equal((await registry.getModuleTwin(id, 'updater')).responseBody.properties.reported.m, 1);
  const call = { methodName: 'echo', payload: { a: 1 }, responseTimeoutInSeconds: 20, connectTimeoutInSeconds: 20 };
  assert.deepEqual((await caller.invokeDeviceMethod(id, 'updater', call)).result.payload, { a: 1 });
  await module.close();
}

async function works_by_a_certificate() {
  const id = `cert-${transport.name}`;
  const [cert, key] = ['pem', 'key'].map((end) => path.join(hub.dir, `${id}.${end}`));
  const options = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '2'];
  execFileSync('openssl', ['req', '-x509', ...options, '-subj', `/CN=${id}`, '-out', cert, '-keyout', key], { stdio: 'ignore' });
  const print = execFileSync('openssl', ['x509', '-in', cert, '-noout', '-fingerprint', '-sha256'], { encoding: 'utf8' });
  const text = hub.tool('device', 'add', id, '--thumbprint', print.split('=')[1].trim());
  const other = Client.fromConnectionString(text, transport);
  await other.setOptions({ cert: fs.readFileSync(cert, 'utf8'), key: fs.readFileSync(key, 'utf8') });
  await other.open();
  await other.sendEvent(new Message('x'));
  assert.equal((await hub.admin(`telemetry/${id}`)).length, 1);
  await other.close();
}

async function finds_no_place_for_files() {
  assert.equal((await refused(device.getBlobSharedAccessSignature('log.txt'))).response.statusCode, 404);
}

/** The checks that want a device, around one that is open. */
function over(kind) {
  async function opens() {
    transport = kind;
    const text = kind === Mqtt ? hub.tool('device', 'add', 'node') : `HostName=${hub.address};DeviceId=node;SharedAccessKey=${
      (await registry.get('node')).responseBody.authentication.symmetricKey.primaryKey}`;
    device = Client.fromConnectionString(text, kind);
    await device.open();
    device.onDeviceMethod('echo', (request, response) => response.send(200, { got: request.payload }));
    device.onDeviceMethod('refuse', (_request, response) => response.send(409));
  }
  async function closes() {
    await within(20, 'close', device.close());
    await eventually(async () => (await state('node')) === 'Disconnected');
  }
  const all = [opens, opens_by_its_key, sends_telemetry, answers_methods, reads_its_twin_and_reports,
    hears_of_desired_properties, takes_no_message_and_is_granted_its_subscription, comes_back_when_it_is_dropped,
    renews_its_token, is_refused_with_a_wrong_key, works_as_a_module, works_by_a_certificate, finds_no_place_for_files,
    closes];
  return all.map((check) => Object.defineProperty(() => check(), 'name', { value: `${kind.name}_${check.name}` }));
}

run('azure-iot-device', [...over(Mqtt), ...over(MqttWs)]);
