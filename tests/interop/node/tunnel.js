'use strict';
// An HTTP proxy, and the agent of Node's with which the clients go through one.

const http = require('node:http');
const https = require('node:https');
const net = require('node:net');
const tls = require('node:tls');

/** A proxy on a port of its own, which notes where it was asked to lead; to `always`, if that is given, it leads. */
async function proxy(always = null) {
  const asked = [];
  const server = http.createServer().on('connect', (request, near) => {
    asked.push(request.url);
    const [host, port] = (always ?? request.url).split(':');
    const far = net.connect(Number(port), host, () => {
      near.write('HTTP/1.1 200 Connection established\r\n\r\n');
      near.pipe(far).pipe(near);
    });
    near.on('error', () => far.destroy());
    far.on('error', () => near.destroy());
  });
  await new Promise((done) => server.listen(0, '127.0.0.1', done));
  return { asked, port: server.address().port };
}

/** Makes its connections by CONNECT. */
class Tunnel extends https.Agent {
  constructor(port) {
    super();
    this.way = { host: '127.0.0.1', port, method: 'CONNECT' };
  }

  createConnection(options, done) {
    const request = http.request({ ...this.way, path: `${options.host}:${options.port}` });
    request.on('connect', (_answer, socket) => done(null, tls.connect({ ...options, socket })));
    request.on('error', done).end();
  }
}

module.exports = { Tunnel, proxy };
