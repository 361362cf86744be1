// Runs poml's own command line, cli.js as it stands in the poml package, once for each job, in one Node process.
//
//   node reference.cjs CLI JOBS
//
// JOBS is a JSON file: a list of {"arguments": [...], "failure": "path"}. Every job executes the whole bundle anew, so
// it starts from fresh modules as a process of its own would; only compiling it, most of the 0.8 s that a start takes,
// happens once. The command line writes its output itself; where it fails, its error is written to `failure`.
'use strict';

const fs = require('node:fs');
const path = require('node:path');
const vm = require('node:vm');
const Module = require('node:module');

const [cli, jobsFile] = process.argv.slice(2);
const jobs = JSON.parse(fs.readFileSync(jobsFile, 'utf8'));
const wrapped = vm.runInThisContext(Module.wrap(fs.readFileSync(cli, 'utf8')), {
  filename: cli,
  importModuleDynamically: vm.constants.USE_MAIN_CONTEXT_DEFAULT_LOADER,
});
const requireFromCli = Module.createRequire(cli);
let current;

process.on('unhandledRejection', ({ name, message, startIndex, endIndex, sourcePath }) => {
  const failure = { kind: name, message, start: startIndex, end: endIndex, file: sourcePath };
  fs.writeFileSync(current.failure, JSON.stringify(failure));
});

// The event loop has run empty: the command line has done all that it does, and the next job may begin.
process.on('beforeExit', () => {
  current = jobs.shift();
  if (!current) return;
  setImmediate(() => {}); // a job that fails at once leaves nothing that would bring this event again
  process.argv = [process.execPath, cli, ...current.arguments];
  const module = { exports: {} };
  wrapped.call(module.exports, module.exports, requireFromCli, module, cli, path.dirname(cli));
});
