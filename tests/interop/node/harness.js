'use strict';
// What the checks for Node share: checks that are counted, waiting, the hub's tools and its administration.
// node.py starts the hub and says in the environment where it is.

const assert = require('node:assert/strict');
const { execFileSync } = require('node:child_process');
const { EventEmitter } = require('node:events');
const fs = require('node:fs');
const https = require('node:https');
const path = require('node:path');

const hub = {
  address: process.env.HUB_ADDRESS,
  dir: process.env.HUB_DIR,

  /** The connection string of the policy with all rights. */
  get service() {
    return fs.readFileSync(path.join(hub.dir, 'service.txt'), 'utf8').trim();
  },

  /** `fwupdate-hub device ...` and the like; what it prints. */
  tool(...words) {
    return execFileSync(process.env.HUB_PROGRAM, [...words, '--dir', hub.dir], { encoding: 'utf8' }).trim();
  },

  /** An enrollment's keys and scope, as `enrollment add` prints them. */
  enrol(...words) {
    return fields(hub.tool('enrollment', 'add', ...words));
  },

  /** Ends it and starts it again, by node.py. A fault that hurts nobody is forgotten then: that is how it is known. */
  async restart() {
    await hub.admin('faults', 'PUT', JSON.stringify({ files: [{ path: 'none', do: 'noRanges' }] }));
    process.kill(process.ppid, 'SIGUSR1');
    await eventually(async () => (await hub.admin('faults').catch(() => null))?.files.length === 0);
  },

  /** Sends a cloud-to-device message: the SDK for services does that over AMQP alone. */
  say(deviceId, body, properties = {}) {
    return hub.admin(`messages/${deviceId}`, 'POST', JSON.stringify({ body, properties }));
  },

  /** The user names and keep-alives of a device's CONNECTs since the recording of the wire began. */
  async connects(deviceId) {
    const frames = (await hub.admin('trace')).filter((frame) => frame.fromDevice && frame.bytes.startsWith('10'));
    return frames.map((frame) => connect(Buffer.from(frame.bytes, 'hex'))).filter((one) => one.client === deviceId);
  },

  /** The administration, which asks for no token. */
  admin(where, method = 'GET', body = undefined) {
    return request(`https://${hub.address}/admin/${where}`, { method }, body).then((answer) =>
      answer.body.length ? JSON.parse(answer.body) : null);
  },
};

/** What a CONNECT packet says; it has no will. */
function connect(packet) {
  let at = packet.findIndex((byte, index) => index > 0 && byte < 128) + 9;
  const field = () => {
    const end = at + 2 + packet.readUInt16BE(at);
    const text = packet.toString('utf8', at + 2, end);
    at = end;
    return text;
  };
  const keepAlive = packet.readUInt16BE(at);
  at += 2;
  return { keepAlive, client: field(), user: field() };
}

/** A key and a certificate for `name`: its own, or what the authority `by` issued. */
function certificate(name, by = null) {
  const [cert, key, request] = ['pem', 'key', 'csr'].map((end) => path.join(hub.dir, `${name}.${end}`));
  const openssl = (...words) => execFileSync('openssl', words, { stdio: ['ignore', 'pipe', 'ignore'], encoding: 'utf8' });
  const fresh = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-subj', `/CN=${name}`, '-keyout', key];
  if (by) {
    // With an extension, for without any it would be of version 1, which nobody takes.
    openssl('req', ...fresh, '-addext', 'basicConstraints=critical,CA:FALSE', '-out', request);
    const issue = ['-req', '-copy_extensions', 'copy', '-days', '2', '-CA', by.file, '-CAkey', by.keyFile, '-CAcreateserial'];
    openssl('x509', ...issue, '-in', request, '-out', cert);
  } else {
    openssl('req', '-x509', ...fresh, '-days', '2', '-out', cert);
  }
  const thumbprint = openssl('x509', '-in', cert, '-noout', '-fingerprint', '-sha256').split('=')[1].trim();
  const [certText, keyText] = [cert, key].map((file) => fs.readFileSync(file, 'utf8'));
  return { file: cert, keyFile: key, thumbprint, pair: { cert: certText, key: keyText } };
}

const made = new Map();

/** The client as it is; which of its calls are made is noted. */
function noted(client) {
  const names = made.get(client.constructor) ?? new Set();
  made.set(client.constructor, names);
  const call = (target, name) => (...words) => {
    names.add(name);
    return target[name](...words);
  };
  return new Proxy(client, { get: (target, name) => (typeof target[name] === 'function' ? call(target, name) : target[name]) });
}

/** The public calls of an SDK's class, and of those that it extends, that nothing here has made. */
function uncalled(kind) {
  const names = [];
  for (let proto = kind.prototype; proto !== EventEmitter.prototype && proto !== Object.prototype; proto = Object.getPrototypeOf(proto)) {
    names.push(...Object.getOwnPropertyNames(proto));
  }
  return names.filter((name) => name !== 'constructor' && !name.startsWith('_') && !made.get(kind)?.has(name));
}

/** `a=b;c=d` as an object. */
function fields(text) {
  return Object.fromEntries(text.split(';').map((pair) => [pair.slice(0, pair.indexOf('=')), pair.slice(pair.indexOf('=') + 1)]));
}

/** One request; status, headers and the body's bytes. */
function request(url, options = {}, body = undefined) {
  return new Promise((done, failed) => {
    const sent = https.request(url, options, (answer) => {
      const parts = [];
      answer.on('data', (part) => parts.push(part));
      answer.on('end', () => done({ status: answer.statusCode, headers: answer.headers, body: Buffer.concat(parts) }));
      answer.on('error', failed);
    });
    sent.on('error', failed);
    sent.end(body);
  });
}

/** Asks again until something true comes. */
async function eventually(ask, seconds = 20) {
  const end = Date.now() + seconds * 1000;
  for (;;) {
    const value = await ask();
    if (value) return value;
    assert(Date.now() < end, `still ${JSON.stringify(value)} after ${seconds} s`);
    await new Promise((go) => setTimeout(go, 50));
  }
}

/** The error of a call that must fail. */
async function refused(call) {
  try {
    await call;
  } catch (error) {
    return error;
  }
  throw new Error('the call should have been refused');
}

/** The promise, or an error that says what was waited for: a client that never answers must not hang the checks. */
function within(seconds, what, promise) {
  let timer;
  const late = new Promise((_, failed) => {
    timer = setTimeout(() => failed(new Error(`${what}: nothing within ${seconds} s`)), seconds * 1000);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/** A function that takes a Node callback, as a promise. */
function called(start) {
  return new Promise((done, failed) => start((error, value) => (error ? failed(error) : done(value))));
}

/** Runs the checks one after the other, counts them, and ends the process by the verdict. */
async function run(family, checks, patience = 60) {
  let [passed, failed] = [0, 0];
  for (const check of checks) {
    const name = `${family}: ${check.name.replaceAll('_', ' ')}`;
    try {
      await within(patience, name, check());
      passed += 1;
      console.log(`ok      ${name}`);
    } catch (error) {
      failed += 1;
      console.log(`FAILED  ${name}\n${error.stack}`);
    }
  }
  console.log(`test result: ${failed ? 'FAILED' : 'ok'}. ${passed} passed; ${failed} failed`);
  process.exit(failed || !passed ? 1 : 0);
}

module.exports = { assert, called, certificate, eventually, fields, hub, noted, refused, request, run, uncalled, within };
