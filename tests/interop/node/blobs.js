'use strict';
// @azure/storage-blob, unmodified, on Azurite: puts a bundle there as one does with Azure's storage, and makes links.
//
// `blobs.js put URL FILE NAME` uploads; `blobs.js link URL NAME SECONDS` prints a link that lets its holder read until
// then; `blobs.js check URL FILE` tries what an update relies on.

// Debian 12's Node has it, but not under the name that the SDK looks for.
globalThis.crypto ??= require('node:crypto').webcrypto;

const fs = require('node:fs');
const {
  BlobSASPermissions, BlobServiceClient, SASProtocol, StorageSharedKeyCredential, generateBlobSASQueryParameters,
} = require('@azure/storage-blob');
const { assert, refused, request, run } = require('./harness');

// The account that Azurite has, with its published key.
const ACCOUNT = 'devstoreaccount1';
const KEY = 'Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==';
const CONTAINER = 'firmware';

const [what, address, ...words] = process.argv.slice(2);
const credential = new StorageSharedKeyCredential(ACCOUNT, KEY);
const container = new BlobServiceClient(`${address}/${ACCOUNT}`, credential).getContainerClient(CONTAINER);

async function put(file, name) {
  await container.createIfNotExists();
  await container.getBlockBlobClient(name).uploadFile(file);
}

function link(name, seconds, permissions = 'r') {
  const token = generateBlobSASQueryParameters({
    containerName: CONTAINER,
    blobName: name,
    permissions: BlobSASPermissions.parse(permissions),
    protocol: SASProtocol.Https,
    startsOn: new Date(Date.now() - 7200_000),
    expiresOn: new Date(Date.now() + seconds * 1000),
  }, credential);
  return `${container.getBlockBlobClient(name).url}?${token}`;
}

const bytes = what === 'check' ? fs.readFileSync(words[0]) : null;
const get = (url, headers = {}, method = 'GET') => request(url, { headers, method });

async function keeps_what_is_uploaded() {
  await put(words[0], 'fw.fwb');
  const answer = await get(link('fw.fwb', 600));
  assert.deepEqual([answer.status, answer.headers['accept-ranges']], [200, 'bytes']);
  assert(answer.body.equals(bytes));
}

async function hands_out_ranges() {
  const answer = await get(link('fw.fwb', 600), { range: 'bytes=100-299' });
  assert.deepEqual([answer.status, answer.headers['content-range']], [206, `bytes 100-299/${bytes.length}`]);
  assert(answer.body.equals(bytes.subarray(100, 300)));
}

async function keeps_a_reader_to_one_content_by_its_etag() {
  const first = (await get(link('fw.fwb', 600), { range: 'bytes=0-0' })).headers.etag;
  assert.match(first, /^"0x[0-9A-F]+"$/);
  assert.equal((await get(link('fw.fwb', 600), { 'if-match': first, range: 'bytes=1-1' })).status, 206);
  await put(words[0], 'fw.fwb');
  const later = await get(link('fw.fwb', 600), { 'if-match': first, range: 'bytes=1-1' });
  assert.deepEqual([later.status, later.headers['x-ms-error-code']], [412, 'ConditionNotMet']);
}

async function opens_to_a_link_alone_and_to_none_that_expired() {
  const good = link('fw.fwb', 600);
  assert.equal((await get(good.split('?')[0])).status, 403);
  assert.equal((await get(good.replace(/sig=[^&]*/, 'sig=AAAA'))).status, 403);
  const expired = await get(link('fw.fwb', -60));
  assert.equal(expired.status, 403);
}

async function lets_a_reader_write_nothing() {
  assert.equal((await get(link('fw.fwb', 600), {}, 'DELETE')).status, 403);
}

async function wants_names_of_three_letters_at_least() {
  const short = new BlobServiceClient(`${address}/${ACCOUNT}`, credential).getContainerClient('fw');
  assert.equal((await refused(short.create())).statusCode, 400);
}

if (what === 'put') {
  put(...words);
} else if (what === 'link') {
  console.log(link(words[0], Number(words[1])));
} else {
  run('@azure/storage-blob', [
    keeps_what_is_uploaded,
    hands_out_ranges,
    keeps_a_reader_to_one_content_by_its_etag,
    opens_to_a_link_alone_and_to_none_that_expired,
    lets_a_reader_write_nothing,
    wants_names_of_three_letters_at_least,
  ]);
}
