// The worker's side of its two pipes: one request after another, each answered with a line.
//
// What a render costs beside itself is here: when the worker looks for the next request, and when it cleans up.
'use strict';

const fs = require('node:fs');
const os = require('node:os');
const { performance } = require('node:perf_hooks');
const process = require('node:process'); // a template's is another

// stdout belongs to the protocol. What the bundle (pdfjs does) or a template prints goes to stderr. A template can still
// write to the descriptor; the newline before each line keeps that apart, and the other side passes it over.
const { rss } = process.memoryUsage;
const write = process.stdout.write.bind(process.stdout);
process.stdout.write = process.stderr.write.bind(process.stderr);
const send = (line, then) => write(`\n${line}\n`, then);

const SPENT = 86; // process.py knows it
const QUICK = 5; // ms
const SOON = 0.3; // ms; the threads of a loaded program take some 0.2 to hand over
// Where to read is not to sleep, and the caller has a core of its own meanwhile.
const mayLook = process.platform !== 'win32' && os.availableParallelism() > 1;
const room = Buffer.alloc(1 << 16);

/**
 * What comes on stdin soon, looked for awake: a process that sleeps between renders takes 25 µs to wake in a virtual
 * machine, and a third longer for a small render, out of cold caches. Only done while requests do come that soon.
 */
function lookFor(then) {
  const end = performance.now() + SOON;
  do {
    try {
      then(Buffer.from(room.subarray(0, fs.readSync(0, room))));
      return;
    } catch (error) {
      if (error.code !== 'EAGAIN') return; // the event loop will meet it too
    }
  } while (performance.now() < end);
}

/**
 * Answers requests as they come, until the parent is gone.
 *
 * @param {(request: string, nearly: () => void) => Promise<string>} answer Gives the answer's JSON, and says before when
 *   there is nearly one.
 * @param {() => boolean} clean Takes back what a render left; false where that is not possible.
 */
function serve(answer, clean) {
  const queue = [];
  let parts = [];
  let busy = false;
  let answers = 0;
  let answered = -Infinity;
  let cleaning = 0;
  function take(chunk) {
    for (let end; (end = chunk.indexOf(10)) >= 0; chunk = chunk.subarray(end + 1)) {
      parts.push(chunk.subarray(0, end));
      queue.push(parts.length > 1 ? Buffer.concat(parts) : parts[0]);
      parts = [];
    }
    if (chunk.length) parts.push(chunk);
  }
  async function work() {
    if (busy) return;
    busy = true;
    while (queue.length) {
      const start = performance.now();
      const awake = mayLook && start - answered < SOON;
      const request = queue.shift().toString();
      // An empty line goes ahead of a small render's: Python wakes up while that is being made.
      const nearly = () => awake && performance.now() - start < SOON && write('\n');
      const line = await answer(request, nearly);
      // Python wakes up while this cleans up; but what took long may have left much, for which no other render is to wait.
      const quick = performance.now() - start < QUICK;
      let whole = quick || clean();
      const memory = answers++ % 32 ? '' : `,"memory":${rss()}`; // 5 µs
      send(`${line.slice(0, -1)}${memory},"ms":${(performance.now() - start + cleaning).toFixed(4)}}`);
      const sent = performance.now();
      if (quick) whole = clean();
      if (!whole) process.exit(SPENT); // at once: what is left may be code, and would see the next render's variables
      answered = performance.now();
      cleaning = quick ? answered - sent : 0;
      if (awake) lookFor(take);
    }
    busy = false;
  }
  process.stdin.on('data', (chunk) => {
    take(chunk);
    work();
  });
  process.stdin.on('end', () => process.exit(0)); // the parent is gone
}

module.exports = { send, serve };
