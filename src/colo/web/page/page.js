// Shows what /events says.  All text of others becomes text nodes, and never markup.
"use strict";

const LOOKS = 60;
const SVG = "http://www.w3.org/2000/svg";
const byId = (id) => document.getElementById(id);
const known = new Map(); // by a VM's id: its history, sums and times so far
const MEANINGS = {
  WELL: "protected, or kept here", WATCH: "not protected", BAD: "may be silent", OVER: "over",
};
let span = 3600;
let last = null;
const busy = new Set();

function make(tag, className, ...children) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.append(...children);
  return node;
}

function put(id, ...children) {
  byId(id).replaceChildren(...children);
}

function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value < 1) return `${Math.round(value * 1e3)} ms`;
  if (value < 100) return `${value.toFixed(1)} s`;
  return value < 7200 ? `${Math.round(value / 60)} min` : `${Math.round(value / 3600)} h`;
}

function bytes(value) {
  if (value === null || value === undefined) return "–";
  if (value < 1024) return `${value} B`;
  return value < 1 << 20 ? `${Math.round(value / 1024)} KiB` : `${(value / (1 << 20)).toFixed(1)} MiB`;
}

function pair(value) {
  const short = (ms) => (ms < 99.95 ? ms.toFixed(1) : ms.toFixed(0));
  return value ? `${short(value.median)} / ${short(value.p99)} ms` : "–";
}

function clock(at) {
  const when = new Date(at * 1e3);
  const day = last && last.at - at > 72000 ? { month: "short", day: "numeric" } : {};
  return when.toLocaleString([], { ...day, hour: "2-digit", minute: "2-digit", second: "2-digit" });
}

// What each checkpoint took since the look before; a colo that has begun anew counts from nothing.
function remember(vm) {
  const old = known.get(vm.id) || { history: [], sums: {}, times: { stopped: [], held: [] } };
  if (vm.history) old.history = vm.history;
  for (const phase of ["stopped", "held"]) {
    const now = vm.sums[phase];
    const before = old.sums[phase];
    const fresh = vm.alive && now && before && now[0] > before[0];
    old.times[phase].push(fresh ? Math.max(0, (now[1] - before[1]) / (now[0] - before[0])) : null);
    old.times[phase].splice(0, old.times[phase].length - LOOKS);
  }
  old.sums = vm.sums;
  known.set(vm.id, old);
}

function bars(values, className, name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${LOOKS} 24`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  const most = Math.max(0, ...values.filter((value) => value !== null));
  svg.setAttribute("aria-label", `${name} of the last minute, at most ${seconds(most)}`);
  values.forEach((value, at) => {
    if (value === null) return;
    const height = most ? Math.max(1, (value / most) * 24) : 1;
    const bar = document.createElementNS(SVG, "rect");
    bar.setAttribute("x", LOOKS - values.length + at);
    bar.setAttribute("y", 24 - height);
    bar.setAttribute("width", 0.8);
    bar.setAttribute("height", height);
    bar.setAttribute("class", className);
    svg.append(bar);
  });
  return svg;
}

function spark(vm, phase, name, value) {
  const caption = make("figcaption", "", `${name} `, make("b", "", pair(value)));
  return make("figure", "", caption, bars(known.get(vm.id).times[phase], phase, name));
}

function facts(vm) {
  const list = make("dl");
  const add = (name, value) => {
    if (value && value !== "–") list.append(make("dt", "", name), make("dd", "", value));
  };
  add("other host", vm.peer && `${vm.peer}${vm.peer_state ? `: ${vm.peer_state}` : ""}`);
  add("checkpoint", vm.checkpoint === null ? "" : `${vm.checkpoint}, ${seconds(vm.age_s)} old`);
  add("held now", bytes(vm.held_bytes));
  add("lag", seconds(vm.lag_s));
  add("disks", vm.disks.join(", "));
  add("arbiter", `${vm.arbiter}${vm.grant ? `, grant ${vm.grant}` : ""}`);
  return list;
}

function card(vm, orders) {
  const title = make("h3", "", vm.vm, make("span", "badge", vm.state), make("span", "role", vm.role));
  const node = make("article", `card ${vm.health}`, title, make("p", "meaning", vm.meaning));
  if (vm.trouble && vm.trouble !== vm.meaning) node.append(make("p", "trouble", vm.trouble));
  node.append(facts(vm));
  if (vm.stopped_ms || vm.held_ms) {
    node.append(make("div", "sparks", spark(vm, "stopped", "stopped", vm.stopped_ms), spark(vm, "held", "output waits", vm.held_ms)));
  }
  if (orders && vm.alive && vm.role === "primary") {
    const button = make("button", "", busy.has(vm.id) ? "It goes over …" : "Switch over …");
    button.disabled = busy.has(vm.id);
    button.dataset.vm = vm.id;
    button.addEventListener("click", () => ask(vm));
    node.append(button);
  }
  return node;
}

function hostOf(address) {
  return address.replace(/^(tcp|unix):/, "").replace(/:\d+$/, "");
}

function hosts(now) {
  const found = new Map([[`${now.host} (this host)`, []]]);
  const [here] = found.keys();
  for (const vm of now.vms) {
    found.get(here).push([vm.vm, `${vm.role} ${vm.state}`, vm.health]);
    if (!vm.peer) continue;
    const there = hostOf(vm.peer);
    const role = vm.role === "primary" ? "secondary" : "primary";
    const state = vm.peer_state ? ` ${vm.peer_state}` : "";
    if (!found.has(there)) found.set(there, []);
    found.get(there).push([vm.vm, `${role}${state}`, vm.alive ? vm.health : "OVER"]);
  }
  return [...found].map(([name, vms]) => {
    const list = make("ul", "", ...vms.map(([vm, says, health]) =>
      make("li", health, make("span", "badge", says), make("span", "", vm))));
    return make("section", "host", make("h3", "", name), list);
  });
}

function track(vm, now) {
  const begin = now.at - span;
  const bar = make("div", "bar");
  const lines = known.get(vm.id).history;
  lines.forEach((line, number) => {
    const end = number + 1 < lines.length ? lines[number + 1].at : now.at;
    if (end < begin) return;
    const from = Math.max(line.at, begin);
    const isLast = number + 1 === lines.length;
    const part = make("i", `${line.health}${isLast && !vm.alive ? " gone" : ""}`);
    part.style.left = `${((from - begin) / span) * 100}%`;
    part.style.width = `${((end - from) / span) * 100}%`;
    part.title = `${clock(line.at)} ${line.role} ${line.state}${line.why ? `: ${line.why}` : ""}`;
    bar.append(part);
    if (line.takeover_ms !== null && line.at >= begin) {
      const mark = make("b");
      mark.style.left = `${((line.at - begin) / span) * 100}%`;
      mark.title = `${clock(line.at)} taken over here in ${Math.round(line.takeover_ms)} ms`;
      bar.append(mark);
    }
  });
  bar.setAttribute("role", "img");
  bar.setAttribute("aria-label", `${vm.vm} is ${vm.state}; ${lines.length} states are remembered`);
  return make("div", "track", make("span", "", vm.vm), bar);
}

function moved(line) {
  if (line.takeover_ms !== null) return `taken over here in ${Math.round(line.takeover_ms)} ms, from checkpoint ${line.checkpoint}`;
  if (line.state === "GOING_OVER") return "goes over to the other host, by order";
  return line.state === "FENCED" ? "fenced: it runs on the other host" : "";
}

function takeovers(now) {
  const found = now.vms.flatMap((vm) => known.get(vm.id).history
    .filter(moved).map((line) => ({ vm: vm.vm, ...line })));
  found.sort((one, other) => other.at - one.at);
  if (!found.length) return [make("li", "soft", "none that this host remembers")];
  return found.slice(0, 20).map((line) => make("li", "",
    make("time", "", clock(line.at)), make("strong", "", line.vm),
    ` ${moved(line)}${line.why ? `: ${line.why}` : ""}`));
}

function summary(now) {
  const rest = now.vms.filter((vm) => vm.health === "BAD" || vm.health === "WATCH").length;
  const count = `${now.vms.length} VM${now.vms.length === 1 ? "" : "s"}`;
  return now.vms.length ? `${count}, ${rest ? `${rest} to look at` : "all well"}` : `no VM has a state folder in ${now.under}`;
}

function render() {
  const now = last;
  byId("host").textContent = now.host;
  byId("summary").textContent = now.error || summary(now);
  document.title = `colo ${now.host}: ${summary(now)}`;
  const focused = document.activeElement && document.activeElement.dataset.vm;
  put("vms", ...now.vms.map((vm) => card(vm, now.orders)));
  if (focused) [...document.querySelectorAll("#vms button")].find((each) => each.dataset.vm === focused)?.focus();
  put("hosts", ...hosts(now));
  put("line", ...now.vms.map((vm) => track(vm, now)), make("div", "track", make("span"),
    make("div", "scale", make("span", "", clock(now.at - span)), make("span", "", "now"))));
  put("legend", ...Object.entries(MEANINGS).map(([health, text]) => make("span", `key ${health}`, text)));
  put("takeovers", ...takeovers(now));
  for (const button of byId("spans").children) {
    button.setAttribute("aria-pressed", String(Number(button.dataset.span) === span));
  }
}

function notice(text, good) {
  const node = byId("notice");
  node.hidden = !text;
  node.textContent = text;
  node.className = good ? "good" : "";
}

function ask(vm) {
  byId("ask-text").textContent = `Have ${vm.vm} go over to ${vm.peer || "the other host"}? Its clients see a short pause.`;
  byId("ask-yes").onclick = () => { byId("ask").close(); order(vm); };
  byId("ask-no").onclick = () => byId("ask").close();
  byId("ask").showModal();
}

async function order(vm) {
  busy.add(vm.id);
  render();
  try {
    const body = JSON.stringify({ id: vm.id, order: "switchover" });
    const answer = await fetch("order", { method: "POST", body, headers: { "X-Colo-Order": "1" } });
    const told = answer.ok ? await answer.json() : { ok: false, text: (await answer.text()).trim() };
    notice(`${vm.vm}: ${told.text}`, told.ok);
  } catch (error) {
    notice(`${vm.vm}: no answer: see how it stands`, false);
  }
  busy.delete(vm.id);
  render();
}

for (const button of byId("spans").children) {
  button.addEventListener("click", () => { span = Number(button.dataset.span); if (last) render(); });
}

let connected = true;
const events = new EventSource("events");
events.onmessage = (event) => {
  if (!connected) notice("");
  connected = true;
  last = JSON.parse(event.data);
  last.vms.forEach(remember);
  render();
};
events.onerror = () => {
  connected = false;
  notice("colo web does not answer; what is shown is old", false);
};
