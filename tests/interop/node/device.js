'use strict';
// azure-iot-device with azure-iot-device-mqtt, unmodified, over MQTT and over WebSocket: what a device does all day.

const { NoRetry, SharedAccessSignature } = require('azure-iot-common');
const { Client, Message, ModuleClient } = require('azure-iot-device');
const { Mqtt, MqttWs } = require('azure-iot-device-mqtt');
const service = require('azure-iothub');
const { assert, called, certificate, eventually, fields, hub, noted, refused, run, uncalled, within } = require('./harness');

const registry = service.Registry.fromConnectionString(hub.service);
const caller = service.Client.fromConnectionString(hub.service);
let transport;
let device;

function connecting(text, kind) {
  return noted(Client.fromConnectionString(text, kind));
}

async function invoke(methodName, payload, deviceId = 'node') {
  const call = { methodName, payload, responseTimeoutInSeconds: 20, connectTimeoutInSeconds: 20 };
  return (await caller.invokeDeviceMethod(deviceId, call)).result;
}

async function state(deviceId) {
  return (await registry.getTwin(deviceId)).responseBody.connectionState;
}

/** Cloud-to-device messages that wait. */
async function messages(deviceId = 'node') {
  return (await registry.get(deviceId)).responseBody.cloudToDeviceMessageCount;
}

async function reported() {
  return (await registry.getTwin('node')).responseBody.properties.reported;
}

async function opens_by_its_key() {
  const id = transport === Mqtt ? 'by-mqtt' : 'by-ws';
  const other = connecting(hub.tool('device', 'add', id), transport);
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

async function receives_messages_and_settles_them() {
  const got = [];
  device.on('message', (message) => got.push(message));
  await hub.say('node', '{"open": 1}', { '$.mid': 'm-1', '$.cid': 'c-1', '$.ct': 'application/json', '$.ce': 'utf-8', 'a b': 'c&d=ä' });
  const message = await eventually(() => got[0]);
  assert.equal(message.data.toString(), '{"open": 1}');
  assert.deepEqual([message.messageId, message.correlationId, message.contentType, message.contentEncoding],
    ['m-1', 'c-1', 'application/json', 'utf-8']);
  assert.deepEqual([message.to, message.properties.getValue('a b')], ['/devices/node/messages/devicebound', 'c&d=ä']);
  assert.equal((await device.complete(message)).constructor.name, 'MessageCompleted');
  // The acknowledgement of MQTT settles it; the client knows no other.
  for (const way of ['reject', 'abandon']) {
    assert.equal((await refused(device[way](message))).name, 'NotImplementedError');
  }
  await eventually(async () => (await messages()) === 0);
  device.removeAllListeners('message');
  assert.equal((await invoke('echo', 2)).payload.got, 2);
}

async function receives_a_message_again_that_was_not_settled() {
  const got = [];
  device.on('message', (message) => got.push(message.data.toString()));
  await hub.admin('faults', 'PUT', JSON.stringify({ mqtt: { cutMessages: 1 } }));
  await hub.say('node', 'twice');
  await eventually(() => got.length === 2, 50);
  assert.deepEqual(got, ['twice', 'twice']);
  await eventually(async () => (await messages()) === 0);
  device.removeAllListeners('message');
}

async function finds_messages_that_came_while_it_was_away() {
  const id = `away-${transport.name}`;
  const text = hub.tool('device', 'add', id);
  await hub.say(id, 'one');
  await hub.say(id, 'two');
  assert.equal(await messages(id), 2);
  const other = connecting(text, transport);
  const got = [];
  other.on('message', (message) => got.push(message.data.toString()));
  await eventually(() => got.length === 2);
  assert.deepEqual(got, ['one', 'two']);
  await eventually(async () => (await messages(id)) === 0);
  await other.close();
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
  const other = noted(Client.fromSharedAccessSignature(token(60), transport));
  await other.open();
  await other.updateSharedAccessSignature(token(600));
  await other.sendEvent(new Message('after'));
  assert.equal((await hub.admin(`telemetry/${DeviceId}`)).length, 1);
  await other.close();
}

async function is_refused_with_a_wrong_key() {
  const wrong = hub.tool('device', 'add', `wrong-${transport.name}`).replace(/SharedAccessKey=.*/, 'SharedAccessKey=d3Jvbmd3cm9uZw==');
  const stranger = connecting(wrong, transport);
  stranger.setRetryPolicy(new NoRetry());
  assert.equal((await refused(stranger.open())).name, 'UnauthorizedError');
}

async function works_as_a_module() {
  const id = `host-${transport.name}`;
  hub.tool('device', 'add', id);
  const module = noted(ModuleClient.fromConnectionString(hub.tool('device', 'add', `${id}/updater`), transport));
  await module.open();
  await module.sendOutputEvent('out', new Message('o'));
  assert.match((await hub.admin(`telemetry/${id}%2Fupdater`)).at(-1).properties, /%24\.on=out/);
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
  const own = certificate(id);
  const text = hub.tool('device', 'add', id, '--thumbprint', own.thumbprint);
  const other = connecting(text, transport);
  await other.setOptions(own.pair);
  await other.open();
  await other.sendEvent(new Message('x'));
  assert.equal((await hub.admin(`telemetry/${id}`)).length, 1);
  await other.close();
  const stranger = connecting(text, transport);
  stranger.setRetryPolicy(new NoRetry());
  await stranger.setOptions(certificate(`not-${id}`).pair);
  assert.equal((await refused(stranger.open())).name, 'UnauthorizedError');
}

async function says_what_it_is_when_it_connects() {
  const id = `said-${transport.name}`;
  const other = connecting(hub.tool('device', 'add', id), transport);
  await other.setOptions({ modelId: 'dtmi:com:example:Gateway;1', productInfo: 'fw/1 (x y)', keepalive: 77 });
  await hub.admin('trace', 'PUT');
  await other.open();
  const [{ user, keepAlive }] = await hub.connects(id);
  assert.equal(keepAlive, 77);
  assert.match(decodeURIComponent(user), /&DeviceClientType=azure-iot-device\/1.*fw\/1 \(x y\)/);
  assert.equal((await registry.getTwin(id)).responseBody.modelId, 'dtmi:com:example:Gateway;1');
  const found = await registry.createQuery(`SELECT * FROM devices WHERE modelId = 'dtmi:com:example:Gateway;1'`).next();
  assert(found.result.some((row) => row.deviceId === id));
  await other.close();
}

async function answers_commands_of_its_components() {
  device.onDeviceMethod('thermostat1*getMaxMinReport', (request, response) => response.send(200, { since: request.payload }));
  assert.deepEqual((await invoke('thermostat1*getMaxMinReport', '2026')).payload, { since: '2026' });
}

async function keeps_one_listener_for_a_method() {
  assert.throws(() => device.onDeviceMethod('echo', () => {}), /already been registered/);
  // What no listener takes is answered by nobody.
  assert.deepEqual((await invoke('echo', null)).payload, { got: null });
}

async function sends_no_batches() {
  assert.equal((await refused(device.sendEventBatch([new Message('a')]))).name, 'NotImplementedError');
  await device.setTransportOptions({ at: 1 });
}

async function finds_no_place_for_files() {
  assert.equal((await refused(device.getBlobSharedAccessSignature('log.txt'))).response.statusCode, 501);
  const { Readable } = require('node:stream');
  await refused(device.uploadToBlob('log.txt', Readable.from('log'), 3));
  await refused(device.notifyBlobUploadStatus('correlation', true, 200, 'OK'));
}

/** The checks that want a device, around one that is open. */
function over(kind) {
  async function opens() {
    transport = kind;
    const text = kind === Mqtt ? hub.tool('device', 'add', 'node') : `HostName=${hub.address};DeviceId=node;SharedAccessKey=${
      (await registry.get('node')).responseBody.authentication.symmetricKey.primaryKey}`;
    device = connecting(text, kind);
    await device.open();
    device.onDeviceMethod('echo', (request, response) => response.send(200, { got: request.payload }));
    device.onDeviceMethod('refuse', (_request, response) => response.send(409));
  }
  async function closes() {
    await within(20, 'close', device.close());
    await eventually(async () => (await state('node')) === 'Disconnected');
  }
  const all = [opens, opens_by_its_key, sends_telemetry, answers_methods, reads_its_twin_and_reports,
    hears_of_desired_properties, receives_messages_and_settles_them,
    receives_a_message_again_that_was_not_settled, finds_messages_that_came_while_it_was_away,
    answers_commands_of_its_components, keeps_one_listener_for_a_method, says_what_it_is_when_it_connects,
    sends_no_batches, comes_back_when_it_is_dropped,
    renews_its_token, is_refused_with_a_wrong_key, works_as_a_module, works_by_a_certificate, finds_no_place_for_files,
    closes];
  return all.map((check) => Object.defineProperty(() => check(), 'name', { value: `${kind.name}_${check.name}` }));
}

async function has_made_every_call_there_is() {
  assert.deepEqual(uncalled(Client), []);
  // The others are the device client's, but for what IoT Edge serves.
  const own = Object.getOwnPropertyNames(ModuleClient.prototype).filter((name) => uncalled(ModuleClient).includes(name));
  assert.deepEqual(own, ['sendOutputEventBatch', 'invokeMethod', 'setOptions']);
}

run('azure-iot-device', [...over(Mqtt), ...over(MqttWs), has_made_every_call_there_is]);
