// Node's net: the events that netkit's handlers have, on one loop.
//   node node_net.js PORT [echo | broadcast | sleep MS | rounds N]
//   node node_net.js calibrate    prints how many rounds take a millisecond
'use strict';
const net = require('node:net');

const [port, kind = 'echo', amount = '0'] = process.argv.slice(2);

function compute(count) {
  let total = 0;
  for (let number = 0; number < count; number++) total = (total + (number & 7)) | 0;
  return total;
}

// The fastest of many trials: what it takes when nobody disturbs.
function calibrate() {
  const count = 1e6;
  let fastest = Infinity;
  for (let trial = 0; trial < 50; trial++) {
    const start = process.hrtime.bigint();
    compute(count);
    fastest = Math.min(fastest, Number(process.hrtime.bigint() - start));
  }
  return Math.round(count * 1e6 / fastest);
}

const rounds = kind === 'rounds' ? Number(amount) : 0;

function echo(socket, data) {
  if (!socket.writable || socket.write(data)) return;
  socket.pause();
  socket.once('drain', () => socket.resume());
}

const members = new Set();

const server = net.createServer({ noDelay: true }, (socket) => {
  socket.on('error', () => socket.destroy());
  if (kind === 'broadcast') {
    members.add(socket);
    socket.on('close', () => members.delete(socket));
  }
  socket.on('data', (data) => {
    if (kind === 'broadcast') {
      for (const member of members) member.write(data);
    } else if (kind === 'sleep') {
      setTimeout(echo, Number(amount), socket, data);
    } else {
      if (rounds) compute(rounds);
      echo(socket, data);
    }
  });
});
if (port === 'calibrate') console.log(calibrate());
else server.listen({ port: Number(port), host: '127.0.0.1', backlog: 4096 });
