'use strict';
// azure-iothub, unmodified, against fwupdate-hub: every call of its registry, queries, configurations, jobs and methods.

const { NoRetry } = require('azure-iot-common');
const { Client, DigitalTwinClient, IoTHubTokenCredentials, JobClient, Registry } = require('azure-iothub');
const { assert, eventually, hub, noted, refused, run, uncalled, within } = require('./harness');

const registry = noted(Registry.fromConnectionString(hub.service));
const jobs = noted(JobClient.fromConnectionString(hub.service));
const client = noted(Client.fromConnectionString(hub.service));
const digital = noted(new DigitalTwinClient(new IoTHubTokenCredentials(hub.service)));

const KEY = 'MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=';
const THUMBPRINT = 'A9993E364706816ABA3E25717850C26C9CD0D89D';

async function make(deviceId) {
  return (await registry.create({ deviceId })).responseBody;
}

function header(answer, name) {
  return answer.httpResponse.headers[name];
}

async function creates_reads_updates_and_deletes_a_device() {
  const keys = { symmetricKey: { primaryKey: KEY, secondaryKey: KEY } };
  const made = await registry.create({ deviceId: 'crud', status: 'enabled', authentication: keys });
  assert.equal(made.responseBody.authentication.symmetricKey.primaryKey, KEY);
  assert.equal(header(made, 'etag'), `"${made.responseBody.etag}"`);
  assert.equal((await refused(make('crud'))).name, 'DeviceAlreadyExistsError');
  await registry.update({ deviceId: 'crud', status: 'disabled', statusReason: 'test', authentication: keys });
  const read = (await registry.get('crud')).responseBody;
  assert.deepEqual([read.status, read.statusReason], ['disabled', 'test']);
  await registry.delete('crud');
  assert.equal((await refused(registry.get('crud'))).name, 'DeviceNotFoundError');
}

async function lists_devices() {
  await make('listed');
  const listed = (await registry.list()).responseBody;
  assert(listed.some((device) => device.deviceId === 'listed'));
}

async function knows_a_device_by_thumbprints() {
  const x509Thumbprint = { primaryThumbprint: THUMBPRINT, secondaryThumbprint: THUMBPRINT };
  const made = await registry.create({ deviceId: 'x509', authentication: { x509Thumbprint } });
  assert.equal(made.responseBody.authentication.type, 'selfSigned');
  assert.equal(made.responseBody.authentication.x509Thumbprint.primaryThumbprint, THUMBPRINT);
}

async function serves_many_devices_at_once() {
  const many = ['bulk-1', 'bulk-2'].map((deviceId) => ({ deviceId }));
  const made = (await registry.addDevices(many)).responseBody;
  assert.deepEqual(made, { isSuccessful: true, errors: [], warnings: [] });
  const again = await refused(registry.addDevices([{ deviceId: 'bulk-3' }, { deviceId: 'bulk-2' }]));
  const told = JSON.parse(again.responseBody);
  assert.equal(told.isSuccessful, false);
  assert.deepEqual(told.errors.map((error) => [error.deviceId, error.errorCode]), [['bulk-2', 'DeviceAlreadyExists']]);
  // What can be done is done.
  const third = (await registry.get('bulk-3')).responseBody;
  await registry.updateDevices([{ deviceId: 'bulk-1', status: 'disabled' }], true);
  assert.equal((await registry.get('bulk-1')).responseBody.status, 'disabled');
  const stale = { deviceId: 'bulk-3', etag: 'c3RhbGU=', status: 'disabled' };
  const refusal = JSON.parse((await refused(registry.updateDevices([stale], false))).responseBody);
  assert.equal(refusal.errors[0].errorCode, 'PreconditionFailed');
  await registry.removeDevices([{ deviceId: 'bulk-3', etag: third.etag }], false);
  await registry.removeDevices(many, true);
  for (const deviceId of ['bulk-1', 'bulk-2', 'bulk-3']) {
    assert.equal((await refused(registry.get(deviceId))).name, 'DeviceNotFoundError');
  }
}

async function patches_a_twin_by_its_etag() {
  await make('shadow');
  const twin = (await registry.getTwin('shadow')).responseBody;
  const stale = twin.etag;
  const patched = await twin.update({ tags: { site: 'Berlin' }, properties: { desired: { a: { b: 1, c: null } } } });
  assert.deepEqual(twin.tags, { site: 'Berlin' });
  assert.deepEqual(twin.properties.desired.a, { b: 1 });
  assert.notEqual(twin.etag, stale);
  assert.equal(patched.message.headers.etag, `"${twin.etag}"`);
  const late = await refused(registry.updateTwin('shadow', { tags: { site: null } }, stale));
  assert.equal(late.name, 'InvalidEtagError');
  await registry.updateTwin('shadow', { tags: { site: null } }, '*');
  // The object has the etag of its last look, and another wrote since.
  assert.equal((await refused(twin.update({ tags: { x: 1 } }))).name, 'InvalidEtagError');
  await twin.get();
  assert.deepEqual(twin.tags, {});
  assert.deepEqual(JSON.parse(JSON.stringify(twin)).properties.desired.a, { b: 1 });
  await twin.update({ properties: { desired: { a: null } } });
  assert.equal('a' in twin.properties.desired, false);
  assert.equal((await refused(registry.getTwin('nobody'))).name, 'DeviceNotFoundError');
}

async function makes_modules_with_twins_of_their_own() {
  await make('edgy');
  const made = (await registry.addModule({ deviceId: 'edgy', moduleId: 'updater' })).responseBody;
  assert.equal((await refused(registry.addModule({ deviceId: 'edgy', moduleId: 'updater' }))).name, 'DeviceAlreadyExistsError');
  const read = (await registry.getModule('edgy', 'updater')).responseBody;
  assert.equal(read.authentication.symmetricKey.primaryKey, made.authentication.symmetricKey.primaryKey);
  assert.deepEqual((await registry.getModulesOnDevice('edgy')).responseBody.map((one) => one.moduleId), ['updater']);
  const changed = (await registry.updateModule({ ...read, managedBy: 'me' }, true)).responseBody;
  assert.notEqual(changed.etag, read.etag);
  assert.equal((await registry.getModule('edgy', 'updater')).responseBody.managedBy, 'me');
  assert.equal((await refused(registry.updateModule(read))).name, 'InvalidEtagError');
  const twin = (await registry.getModuleTwin('edgy', 'updater')).responseBody;
  await registry.updateModuleTwin('edgy', 'updater', { properties: { desired: { x: 1 } } }, twin.etag);
  assert.equal((await registry.getModuleTwin('edgy', 'updater')).responseBody.properties.desired.x, 1);
  await registry.removeModule('edgy', 'updater');
  assert.deepEqual((await registry.getModulesOnDevice('edgy')).responseBody, []);
}

async function queries_in_pages() {
  for (const number of [1, 2, 3]) {
    await make(`page-${number}`);
    await registry.updateTwin(`page-${number}`, { tags: { page: number } }, '*');
  }
  const query = registry.createQuery('SELECT * FROM devices WHERE is_defined(tags.page)', 2);
  const pages = [];
  while (query.hasMoreResults) {
    const { result, message } = await query.nextAsTwin();
    assert.equal(message.headers['x-ms-item-type'], 'Twin');
    pages.push(result.map((twin) => twin.deviceId));
  }
  assert.deepEqual(pages, [['page-1', 'page-2'], ['page-3']]);
  const again = registry.createQuery('SELECT * FROM devices WHERE is_defined(tags.page)', 2);
  const { message: { headers } } = await again.next();
  const rest = await again.next(headers['x-ms-continuation']);
  assert.deepEqual(rest.result.map((row) => row.deviceId), ['page-3']);
  const counted = await registry.createQuery('SELECT COUNT() AS n FROM devices WHERE tags.page > 1').next();
  assert.deepEqual(counted.result, [{ n: 2 }]);
  assert.equal((await refused(registry.createQuery('SELECT 1').next())).name, 'ArgumentError');
}

async function counts_the_devices() {
  const before = (await registry.getRegistryStatistics()).responseBody;
  await make('counted');
  const after = (await registry.getRegistryStatistics()).responseBody;
  assert.equal(after.totalDeviceCount, before.totalDeviceCount + 1);
  assert.equal(after.enabledDeviceCount + after.disabledDeviceCount, after.totalDeviceCount);
}

async function makes_and_changes_a_configuration() {
  await make('ring-1');
  await registry.updateTwin('ring-1', { tags: { ring: 1 } }, '*');
  const wanted = {
    id: 'fw-2', targetCondition: 'tags.ring = 1', priority: 10,
    content: { deviceContent: { 'properties.desired.fwupdate': { version: '2.0.0' } } },
    metrics: { queries: { all: 'SELECT deviceId FROM devices' } },
  };
  const made = await registry.addConfiguration(wanted);
  assert.equal(header(made, 'etag'), `"${made.responseBody.etag}"`);
  assert.equal((await registry.getTwin('ring-1')).responseBody.properties.desired.fwupdate.version, '2.0.0');
  const kept = (await registry.getConfiguration('fw-2')).responseBody;
  assert.deepEqual([kept.systemMetrics.results.targetedCount, kept.systemMetrics.results.appliedCount], [1, 1]);
  assert(kept.metrics.results.all >= 1);
  assert.deepEqual((await registry.getConfigurations()).responseBody.map((one) => one.id), ['fw-2']);
  const changed = (await registry.updateConfiguration({ ...kept, priority: 11 })).responseBody;
  assert.equal(changed.priority, 11);
  assert.equal((await refused(registry.updateConfiguration({ ...kept, priority: 12 }))).name, 'InvalidEtagError');
  assert.equal((await registry.updateConfiguration({ ...kept, priority: 13 }, true)).responseBody.priority, 13);
  // As in Azure a dot is no character of an id.
  assert.equal((await refused(registry.addConfiguration({ ...wanted, id: 'fw-2.0' }))).name, 'ArgumentError');
  await registry.removeConfiguration('fw-2');
  assert.equal((await refused(registry.getConfiguration('fw-2'))).response.statusCode, 404);
}

async function finished(id) {
  return eventually(async () => {
    const { jobStatus } = await jobs.getJob(id);
    return ['completed', 'failed'].includes(jobStatus.status) && jobStatus;
  });
}

async function runs_a_job_that_writes_twins() {
  await make('job-1');
  const patch = { etag: '*', tags: { job: true }, properties: { desired: { interval: 10 } } };
  const ordered = (await jobs.scheduleTwinUpdate('twins', "deviceId = 'job-1'", patch, new Date(), 60)).jobStatus;
  assert.deepEqual([ordered.jobId, ordered.type], ['twins', 'scheduleUpdateTwin']);
  const done = await finished('twins');
  assert.deepEqual([done.status, done.deviceJobStatistics.succeededCount], ['completed', 1]);
  assert.equal((await registry.getTwin('job-1')).responseBody.properties.desired.interval, 10);
}

async function runs_a_job_that_calls_a_method() {
  const call = { methodName: 'reboot', payload: null, responseTimeoutInSeconds: 15 };
  await jobs.scheduleDeviceMethod('methods', "deviceId = 'job-1'", call, new Date(), 60);
  // Nobody listens there.
  assert.equal((await finished('methods')).deviceJobStatistics.failedCount, 1);
  const rows = await registry.createQuery("SELECT * FROM devices.jobs WHERE devices.jobs.jobId = 'methods'").next();
  assert.equal(rows.message.headers['x-ms-item-type'], 'DeviceJob');
  assert.deepEqual(rows.result.map((row) => [row.deviceId, row.status]), [['job-1', 'failed']]);
}

async function cancels_a_job() {
  const later = new Date(Date.now() + 3600_000);
  await jobs.scheduleTwinUpdate('later', '*', { tags: { never: 1 } }, later, 60);
  assert.equal((await jobs.cancelJob('later')).jobStatus.status, 'cancelled');
}

async function asks_for_jobs_in_pages() {
  const query = jobs.createQuery(undefined, undefined, 2);
  const pages = [];
  while (query.hasMoreResults) {
    const { result, message } = await query.next(query.continuationToken);
    assert.equal(message.headers['x-ms-item-type'], 'JobResponse');
    pages.push(result.map((job) => job.jobId));
  }
  assert.deepEqual(pages, [['later', 'methods'], ['twins']]);
  const ended = await jobs.createQuery('scheduleUpdateTwin', 'completed').next();
  assert.deepEqual(ended.result.map((job) => job.jobId), ['twins']);
}

async function tells_of_imports_and_exports_that_there_are_none() {
  assert.deepEqual((await registry.listJobs()).responseBody, []);
  assert.equal((await refused(registry.getJob('x'))).response.statusCode, 404);
  assert.equal((await refused(registry.cancelJob('x'))).response.statusCode, 404);
}

async function says_why_a_method_reaches_nobody() {
  const call = { methodName: 'x', payload: { a: 1 }, responseTimeoutInSeconds: 5 };
  const offline = await refused(client.invokeDeviceMethod('page-1', call));
  assert.deepEqual([offline.response.statusCode, offline.response.headers['iothub-errorcode']], [404, 'DeviceNotOnline']);
  const unknown = await refused(client.invokeDeviceMethod('nobody', call));
  assert.equal(unknown.response.headers['iothub-errorcode'], 'DeviceNotFound');
  const hasty = await refused(client.invokeDeviceMethod('page-1', { ...call, responseTimeoutInSeconds: 4 }));
  assert.equal(hasty.name, 'ArgumentError');
}

async function refuses_a_wrong_key() {
  const wrong = hub.service.replace(/SharedAccessKey=.*/, 'SharedAccessKey=d3Jvbmd3cm9uZ3dyb25n');
  assert.equal((await refused(Registry.fromConnectionString(wrong).list())).name, 'UnauthorizedError');
}

async function says_what_it_leaves_out() {
  const left_out = [
    () => registry.applyConfigurationContentOnDevice('page-1', { modulesContent: {} }),
    () => registry.importDevicesFromBlob('https://x/in', 'https://x/out'),
    () => registry.importDevicesFromBlobByIdentity('https://x/in', 'https://x/out', 'me'),
    () => registry.exportDevicesToBlob('https://x/out', true),
    () => registry.exportDevicesToBlobByIdentity('https://x/out', true, 'me'),
    () => registry.create({ deviceId: 'edge', capabilities: { iotEdge: true } }),
    () => registry.create({ deviceId: 'ca', authentication: { type: 'certificateAuthority' } }),
  ];
  for (const call of left_out) {
    assert.equal((await refused(call())).response.statusCode, 501);
  }
  const digital_twins = [
    () => digital.getDigitalTwin('page-1'),
    () => digital.updateDigitalTwin('page-1', [{ op: 'add', path: '/a', value: 1 }]),
    () => digital.invokeCommand('page-1', 'reboot', 'now'),
    () => digital.invokeComponentCommand('page-1', 'thermostat1', 'reboot', 'now'),
  ];
  for (const call of digital_twins) {
    assert.equal((await refused(call())).statusCode, 501);
  }
}

async function finds_nobody_who_speaks_amqp() {
  client.setRetryPolicy(new NoRetry());
  const calls = ['open', 'send', 'getFeedbackReceiver', 'getFileNotificationReceiver'];
  for (const call of calls) {
    assert.equal((await refused(within(20, call, call === 'send' ? client.send('page-1', 'hello') : client[call]()))).name, 'NotConnectedError');
  }
  await client.close();
}

async function has_made_every_call_there_is() {
  assert.deepEqual([Registry, JobClient, Client, DigitalTwinClient].map(uncalled), [[], [], [], []]);
}

run('azure-iothub', [
  creates_reads_updates_and_deletes_a_device,
  lists_devices,
  knows_a_device_by_thumbprints,
  serves_many_devices_at_once,
  patches_a_twin_by_its_etag,
  makes_modules_with_twins_of_their_own,
  queries_in_pages,
  counts_the_devices,
  makes_and_changes_a_configuration,
  runs_a_job_that_writes_twins,
  runs_a_job_that_calls_a_method,
  cancels_a_job,
  asks_for_jobs_in_pages,
  tells_of_imports_and_exports_that_there_are_none,
  says_why_a_method_reaches_nobody,
  refuses_a_wrong_key,
  says_what_it_leaves_out,
  finds_nobody_who_speaks_amqp,
  has_made_every_call_there_is,
]);
