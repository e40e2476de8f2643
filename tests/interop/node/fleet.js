'use strict';
// azure-iothub, unmodified, against hub and agent: what a fleet's back end does with a gateway.
//
// tests/integration/sdk.rs runs it beside a simulated gateway `gw`, which reboots as the agent asks, with the service
// connection string in the environment: `fleet.js URL_OF_2.0.0 URL_OF_3.0.0`, of which the second never comes whole.

const { Client, JobClient, Registry } = require('azure-iothub');
const { assert, eventually, run } = require('./harness');

const text = process.env.IOTHUB_CONNECTION_STRING;
const registry = Registry.fromConnectionString(text);
const client = Client.fromConnectionString(text);
const jobs = JobClient.fromConnectionString(text);
const [two, three] = process.argv.slice(2);
const DEVICE = 'gw';
const FIELDS = 'fwPackageUri, manifestSha256, version, operationId, maxDownloadBytes, allowDowngrade, force, notBefore, deadline';

async function invoke(methodName, payload) {
  const call = { methodName, payload, responseTimeoutInSeconds: 30, connectTimeoutInSeconds: 60 };
  const { status, payload: body } = (await client.invokeDeviceMethod(DEVICE, call)).result;
  return [status, body];
}

async function reported() {
  return (await registry.getTwin(DEVICE)).responseBody.properties.reported;
}

/** Follows the twin to the end of an operation. */
function ended(id) {
  return eventually(async () => {
    const { firmwareStatus, fwupdate } = await reported();
    return fwupdate.last?.id === id && [firmwareStatus, fwupdate.last];
  }, 120);
}

async function is_told_what_the_gateway_is() {
  const [status, body] = await invoke('firmwareStatus', null);
  assert.deepEqual([status, body.firmwareStatus, body.fwupdate.agent.bootedSlot], [200, 'standBy', 'A']);
}

async function calls_a_method_that_there_is_not() {
  const known = 'firmwareUpdate, firmwareStatus, firmwareCancel, firmwareApprove, firmwareDefer, firmwareRollback, reboot';
  const message = `unknown method "firmwareUpgrade"; known are ${known}`;
  assert.deepEqual(await invoke('firmwareUpgrade', {}), [404, { error: { code: 'NotFound', message } }]);
}

async function says_something_that_is_no_update() {
  const wrong = [
    [null, 'the payload must be a JSON object'],
    ['https://x/y', 'the payload must be a JSON object'],
    [{}, 'fwPackageUri is missing: give the https URL of a bundle'],
    [{ fwPackageUri: 'http://plain/x' }, 'fwPackageUri must be an https URL, not http'],
    [{ fwPackageUri: two, versoin: '2.0.0' }, `unknown field "versoin"; known are ${FIELDS}`],
    [{ fwPackageUri: two, version: 2 }, 'version must be a string'],
  ];
  for (const [payload, message] of wrong) {
    assert.deepEqual(await invoke('firmwareUpdate', payload), [400, { error: { code: 'MalformedRequest', message } }]);
  }
}

async function has_nothing_to_cancel() {
  const error = { code: 'NotReady', message: 'no operation runs' };
  assert.deepEqual(await invoke('firmwareCancel', {}), [503, { error }]);
}

async function updates_the_gateway() {
  const call = { fwPackageUri: two, version: '2.0.0', operationId: 'first' };
  assert.deepEqual(await invoke('firmwareUpdate', call), [200, { Response: 'Firmware update started', operationId: 'first' }]);
  const [status, last] = await ended('first');
  assert.deepEqual([status, last.result, last.fromVersion, last.toVersion, last.source, last.error ?? null],
    ['completed', 'committed', '1.0.0', '2.0.0', 'method', null]);
  const [again, told] = await invoke('firmwareUpdate', call);
  assert.deepEqual([again, told.Response, told.last.result], [200, 'Firmware update already ended', 'committed']);
}

async function cancels_an_update() {
  const call = { fwPackageUri: three, operationId: 'second' };
  assert.deepEqual(await invoke('firmwareUpdate', call), [200, { Response: 'Firmware update started', operationId: 'second' }]);
  await eventually(async () => (await reported()).fwupdate.operation?.phase === 'staging', 120);
  const busy = { code: 'Busy', message: 'operation second runs; cancel it or wait for its end', operationId: 'second' };
  assert.deepEqual(await invoke('firmwareUpdate', { fwPackageUri: two }), [409, { error: busy }]);
  const other = { code: 'Busy', message: 'operation second runs, not third', operationId: 'second' };
  assert.deepEqual(await invoke('firmwareCancel', { operationId: 'third' }), [409, { error: other }]);
  const told = { Response: 'Firmware update cancelled', operationId: 'second' };
  assert.deepEqual(await invoke('firmwareCancel', { operationId: 'second' }), [200, told]);
  const [status, last] = await ended('second');
  assert.deepEqual([status, last.result, last.error.code], ['cancelled', 'cancelled', 'Cancelled']);
}

async function asks_by_a_job() {
  const call = { methodName: 'firmwareStatus', payload: null, responseTimeoutInSeconds: 30, connectTimeoutInSeconds: 30 };
  await jobs.scheduleDeviceMethod('ask', "properties.reported.firmwareStatus = 'cancelled'", call, new Date(), 300);
  const done = await eventually(async () => {
    const { jobStatus } = await jobs.getJob('ask');
    return jobStatus.status === 'completed' && jobStatus;
  }, 120);
  assert.equal(done.deviceJobStatistics.succeededCount, 1);
  const { result: [row] } = await registry.createQuery("SELECT * FROM devices.jobs WHERE devices.jobs.jobId = 'ask'").next();
  const { status, payload } = row.outcome.deviceMethodResponse;
  assert.deepEqual([row.deviceId, status, payload.fwupdate.agent.bootedSlot], [DEVICE, 200, 'B']);
}

run('azure-iothub', [
  is_told_what_the_gateway_is,
  calls_a_method_that_there_is_not,
  says_something_that_is_no_update,
  has_nothing_to_cancel,
  updates_the_gateway,
  cancels_an_update,
  asks_by_a_job,
], 150);
