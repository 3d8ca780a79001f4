// Lists the streams that are published, and plays one: with hls.js where the browser has Media Source Extensions, else by itself (Safari on phones).
"use strict";

const LOOK_EVERY = 2000; // ms
const state = document.getElementById("state");
const streams = document.getElementById("streams");
const player = document.getElementById("player");

let names = [];
let playing = null; // name of the stream that is shown
let wanted = decodeURIComponent(location.hash.slice(1)) || null; // what the address asks for
let hls = null;

function stop() {
  if (hls) hls.destroy();
  hls = null;
  player.removeAttribute("src");
  player.load();
  player.hidden = true;
  playing = null;
}

function say(text) {
  if (state.textContent !== text) state.textContent = text;
}

function play(name) {
  stop();
  playing = name;
  player.hidden = false;
  const url = "/hls/" + encodeURIComponent(name) + ".m3u8";
  if (window.Hls && Hls.isSupported()) {
    // The playlist is there when the first fragments are, some seconds after the publisher: until then it is asked for again.
    hls = new Hls({ manifestLoadPolicy: { default: retrying(30) }, playlistLoadPolicy: { default: retrying(10) } });
    hls.on(Hls.Events.ERROR, (_, error) => {
      if (!error.fatal) return;
      if (error.type === Hls.ErrorTypes.MEDIA_ERROR) return hls.recoverMediaError();
      say(name + ": " + error.details);
      stop(); // the next look begins again, if it is still published
    });
    hls.loadSource(url);
    hls.attachMedia(player);
  } else if (player.canPlayType("application/vnd.apple.mpegurl")) {
    player.src = url;
  } else {
    say("This browser cannot play HLS. Open this in a player: " + new URL(url, location.href));
    stop();
    wanted = null;
    return;
  }
  say("Playing " + name);
  player.play().catch((error) => { if (error.name === "NotAllowedError") say(name + " is ready: press play."); });
}

function retrying(times) {
  // By itself hls.js takes a 404 for final.
  const shouldRetry = (_, count) => count < times;
  const retry = { maxNumRetry: times, retryDelayMs: 1000, maxRetryDelayMs: 2000, shouldRetry };
  return { maxTimeToFirstByteMs: 10000, maxLoadTimeMs: 20000, timeoutRetry: retry, errorRetry: retry };
}

function show() {
  streams.replaceChildren(...names.map((name) => {
    const button = document.createElement("button");
    button.textContent = name;
    button.setAttribute("aria-pressed", String(name === playing));
    button.onclick = () => { wanted = name; location.hash = encodeURIComponent(name); play(name); show(); };
    return button;
  }));
}

async function look() {
  try {
    const answer = await fetch("/stat", { cache: "no-store" });
    const tree = new DOMParser().parseFromString(await answer.text(), "text/xml");
    names = [...tree.querySelectorAll("application > live > stream")]
      .filter((stream) => stream.querySelector("publishing"))
      .map((stream) => stream.querySelector("name").textContent);
  } catch (error) {
    say("The server does not answer: " + error.message);
    return;
  }
  if (playing !== null && !names.includes(playing)) {
    say(playing + " has ended.");
    stop();
  } else if (playing === null) {
    // What the address asks for, else the only one there is.
    const next = wanted !== null ? names.find((name) => name === wanted) : names.length === 1 ? names[0] : undefined;
    if (next !== undefined) play(next);
    else if (!names.length) say("Nobody is streaming.");
    else say("Choose a stream:");
  }
  show();
}

window.addEventListener("hashchange", () => {
  wanted = decodeURIComponent(location.hash.slice(1)) || null;
  if (wanted !== null && wanted !== playing && names.includes(wanted)) play(wanted);
  show();
});
(async () => {
  for (;;) {
    await look();
    await new Promise((resolve) => setTimeout(resolve, LOOK_EVERY));
  }
})();
