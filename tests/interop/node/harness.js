'use strict';
// What the checks for Node share: checks that are counted, waiting, the hub's tools and its administration.
// node.py starts the hub and says in the environment where it is.

const assert = require('node:assert/strict');
const { execFileSync } = require('node:child_process');
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

  /** The administration, which asks for no token. */
  admin(where, method = 'GET', body = undefined) {
    return request(`https://${hub.address}/admin/${where}`, { method }, body).then((answer) =>
      answer.body.length ? JSON.parse(answer.body) : null);
  },
};

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
async function run(family, checks) {
  let [passed, failed] = [0, 0];
  for (const check of checks) {
    const name = `${family}: ${check.name.replaceAll('_', ' ')}`;
    try {
      await within(60, name, check());
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

module.exports = { assert, called, eventually, fields, hub, refused, request, run, within };
