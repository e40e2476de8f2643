'use strict';
// azure-iot-device and azure-iothub, unmodified: what they say when nothing comes back, and sessions that outlive their
// token and the hub.

const { Client, Message, NoRetry } = { ...require('azure-iot-common'), ...require('azure-iot-device') };
const { Mqtt, MqttWs } = require('azure-iot-device-mqtt');
const service = require('azure-iothub');
const { assert, called, eventually, hub, refused, run, within } = require('./harness');
const { Tunnel, proxy } = require('./tunnel');

const registry = service.Registry.fromConnectionString(hub.service);
const caller = service.Client.fromConnectionString(hub.service);
caller.setRetryPolicy(new NoRetry());

async function opened(id, transport, options = {}) {
  const device = Client.fromConnectionString(hub.tool('device', 'add', id), transport);
  await device.setOptions({ keepalive: 60, ...options });
  await device.open();
  device.onDeviceMethod('echo', (request, response) => response.send(200, request.payload));
  device.onDeviceMethod('silent', () => {});
  return device;
}

async function invoke(deviceId, methodName, more) {
  const answer = await caller.invokeDeviceMethod(deviceId, { methodName, payload: { a: 1 }, responseTimeoutInSeconds: 20, ...more });
  return answer.result;
}

/** What the hub said of a call that came to nothing: as in Azure JSON within JSON, which the client does not open. */
function told({ response, responseBody }) {
  const { ExceptionMessage, Message } = JSON.parse(responseBody);
  const { errorCode, message, info, trackingId, timestampUtc } = JSON.parse(Message);
  assert.equal(ExceptionMessage, '');
  assert(trackingId && Date.parse(timestampUtc));
  return [response.statusCode, response.headers['iothub-errorcode'], errorCode, message, info.timeout];
}

async function waits_for_a_device_to_connect() {
  const text = hub.tool('device', 'add', 'late');
  const offline = await refused(invoke('late', 'echo'));
  assert.equal(offline.message, 'Not found');
  const words = 'Timed out waiting for device to connect.';
  assert.deepEqual(told(offline), [404, 'DeviceNotOnline', 404103, words, '00:00:00']);
  const later = await refused(invoke('late', 'echo', { connectTimeoutInSeconds: 1 }));
  assert.deepEqual(told(later), [404, 'DeviceNotOnline', 404103, words, '00:00:01']);
  const call = invoke('late', 'echo', { connectTimeoutInSeconds: 30 });
  const device = Client.fromConnectionString(text, Mqtt);
  await device.open();
  device.onDeviceMethod('echo', (request, response) => response.send(201, request.payload));
  assert.deepEqual([(await call).status, (await call).payload], [201, { a: 1 }]);
  await device.close();
}

async function gives_up_on_a_device_that_does_not_answer() {
  const devices = await Promise.all([opened('mute-mqtt', Mqtt), opened('mute-ws', MqttWs)]);
  const calls = ['mute-mqtt', 'mute-ws'].map(async (id) => {
    assert.deepEqual((await invoke(id, 'echo', { connectTimeoutInSeconds: 20 })).payload, { a: 1 });
    const error = await refused(invoke(id, 'silent', { responseTimeoutInSeconds: 5 }));
    assert.equal(error.name, 'GatewayTimeoutError');
    assert.deepEqual(told(error), [504, 'GatewayTimeout', 504101, 'Timed out waiting for the response from device.', '00:00:05']);
    // Nobody listens to this one.
    assert.deepEqual((await invoke(id, 'echo')).payload, { a: 1 });
  });
  await Promise.all(calls);
  await Promise.all(devices.map((device) => device.close()));
}

async function goes_through_a_proxy() {
  const { asked, port } = await proxy();
  const webSocketAgent = new Tunnel(port);
  const ca = process.env.NODE_EXTRA_CA_CERTS;
  const device = await opened('proxied', MqttWs, { mqtt: { webSocketAgent }, ca });
  assert.deepEqual((await invoke('proxied', 'echo', { connectTimeoutInSeconds: 20 })).payload, { a: 1 });
  assert.deepEqual(asked, [`${hub.address}:443`]);
  await device.close();
}

/** On its own the client makes new tokens; each opens a connection, for MQTT has no other way. */
async function renews_its_token_over_and_over() {
  await hub.admin('trace', 'PUT');
  const tokenRenewal = { tokenValidTimeInSeconds: 4, tokenRenewalMarginInSeconds: 2 };
  const kinds = [['renewing-mqtt', Mqtt], ['renewing-ws', MqttWs]];
  await Promise.all(kinds.map(async ([id, transport]) => {
    const device = await opened(id, transport, { tokenRenewal });
    const lost = [];
    device.on('disconnect', (reason) => lost.push(reason));
    // Longer than any of them is good for.
    await eventually(async () => (await hub.connects(id)).length >= 4, 50);
    assert.deepEqual((await invoke(id, 'echo', { connectTimeoutInSeconds: 20 })).payload, { a: 1 });
    await device.sendEvent(new Message('here'));
    assert.deepEqual(lost, []);
    await device.close();
  }));
}

async function comes_back_when_the_hub_has_restarted() {
  const kinds = [['restart-mqtt', Mqtt], ['restart-ws', MqttWs]];
  const devices = await Promise.all(kinds.map(([id, transport]) => opened(id, transport)));
  const got = [];
  const twins = await Promise.all(devices.map((device) => device.getTwin()));
  for (const [index, device] of devices.entries()) {
    device.on('message', (message) => got.push(`${index} ${message.data}`));
    await called((done) => twins[index].properties.reported.update({ before: index }, done));
  }
  await hub.restart();
  for (const [index, [id]] of kinds.entries()) {
    assert.deepEqual((await invoke(id, 'echo', { connectTimeoutInSeconds: 60 })).payload, { a: 1 });
    await called((done) => twins[index].properties.reported.update({ after: index }, done));
    const { before, after } = (await registry.getTwin(id)).responseBody.properties.reported;
    assert.deepEqual([before, after], [index, index]);
    await hub.say(id, 'welcome');
  }
  await eventually(() => got.length === 2);
  assert.deepEqual(got.sort(), ['0 welcome', '1 welcome']);
  await Promise.all(devices.map((device) => within(20, 'close', device.close())));
}

run('azure-iot-device', [
  waits_for_a_device_to_connect,
  gives_up_on_a_device_that_does_not_answer,
  goes_through_a_proxy,
  renews_its_token_over_and_over,
  comes_back_when_the_hub_has_restarted,
]);
