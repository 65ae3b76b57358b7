#!/usr/bin/env node
// usage: greet URL
//
// Opens from libuv's threads, from a worker's thread and from the main thread; executes from both of
// the latter; connects without waiting: over HTTP, and over IPv6 and unix sockets where nobody is.
const { execFileSync } = require("child_process");
const fs = require("fs");
const http = require("http");
const net = require("net");
const path = require("path");
const { Worker, isMainThread, workerData } = require("worker_threads");

const banner = require("banner-of-stars");
const phrases = require("phrases");

function look(name) {
  for (const file of [name, `${name}.missing`]) {
    try {
      fs.closeSync(fs.openSync(file));
    } catch (error) {
      if (error.code !== "ENOENT") throw error;
    }
  }
  execFileSync("true", [name]);
}

function refused(options) {
  return new Promise((resolve) => net.connect(options).on("error", resolve));
}

function fetched(url) {
  return new Promise((resolve, reject) => {
    http.get(url, (answer) => answer.resume().on("end", resolve)).on("error", reject);
  });
}

async function main(url) {
  const workers = [1, 2].map(() => new Worker(__filename, { workerData: __dirname }));
  const ended = workers.map((worker) => new Promise((resolve, reject) => {
    worker.on("exit", resolve).on("error", reject);
  }));
  look(__filename);
  const files = await fs.promises.readdir(__dirname);
  const read = files.map((file) => fs.promises.readFile(path.join(__dirname, file)));
  const gone = fs.promises.readFile("gone").catch((error) => error);
  const asked = [fetched(url), fetched(url), refused({ path: "gone" }), refused({ host: "::1", port: 1 })];
  await Promise.all([...ended, ...read, gone, ...asked]);
  console.log(banner(phrases.hello));
}

if (isMainThread) main(process.argv[2]);
else look(workerData);
