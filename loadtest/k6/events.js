// Posts events by REST and checks what a receiver got: every one of them exactly
// once, and soon. It creates a webhook in an organization of its own and deletes it
// at its end.
//
//   BASE_URL   where REST is                                      http://127.0.0.1:8080
//   ADMIN_KEY  an API key that may write events and webhooks      (must be given)
//   TARGET     the URL that the webhook calls                     http://127.0.0.1:9999/hook
//   RECEIVER   where the receiver tells what it got (/requests)   http://127.0.0.1:9998
//   EVENTS     how many events to post                            1000
//   VUS        how many clients post them                         10
//   MAX_WAIT   seconds from an event's post to its arrival        30

import http from 'k6/http';
import exec from 'k6/execution';
import { check, sleep } from 'k6';
import { Rate, Trend } from 'k6/metrics';

const base = __ENV.BASE_URL || 'http://127.0.0.1:8080';
const target = __ENV.TARGET || 'http://127.0.0.1:9999/hook';
const receiver = __ENV.RECEIVER || 'http://127.0.0.1:9998';
const events = number('EVENTS', 1000);
const vus = number('VUS', 10);
const maxWait = number('MAX_WAIT', 30);

const deliveredOnce = new Rate('delivered_once');
const deliveryWait = new Trend('delivery_wait', true);

export const options = {
  scenarios: {
    events: { executor: 'shared-iterations', vus: Math.min(vus, events), iterations: events, maxDuration: '1h' },
  },
  thresholds: {
    checks: ['rate==1'],
    delivered_once: ['rate==1'],
    delivery_wait: [`max<${maxWait * 1000}`],
  },
  summaryTrendStats: ['min', 'med', 'p(99)', 'max'],
  setupTimeout: '60s',
  // It waits once for the events and once for the last one, and then reads and deletes.
  teardownTimeout: `${2 * maxWait + 60}s`,
};

function number(name, fallback) {
  const value = Number(__ENV[name] || fallback);
  if (!Number.isInteger(value) || value < 1) {
    throw new Error(`${name} = ${__ENV[name]}: must be a whole number, at least 1`);
  }
  return value;
}

// call makes a REST call; expected is the only status that is no failure.
function call(method, path, expected, body) {
  const answer = http.request(method, base + path, body === undefined ? null : JSON.stringify(body), {
    headers: { Authorization: `Bearer ${__ENV.ADMIN_KEY}`, 'Content-Type': 'application/json' },
    responseCallback: http.expectedStatuses(expected),
    tags: { name: `${method} ${path.replace(/wh_\w+/, '{id}')}` },
  });
  check(answer, { [`${method} is answered ${expected}`]: (a) => a.status === expected });
  return answer;
}

export function setup() {
  if (!__ENV.ADMIN_KEY) {
    throw new Error('ADMIN_KEY is not set: give an API key that may write events and webhooks');
  }
  const run = `k6-${Date.now()}-${Math.floor(Math.random() * 1e9)}`;
  const answer = call('POST', '/webhook-events', 201, { organization: run, active: true, url: target, events: 'k6' });
  if (answer.status !== 201) {
    throw new Error(`creating webhook: status ${answer.status}: ${answer.body || answer.error}`);
  }
  return { run, webhook: answer.json('id') };
}

export default function (data) {
  post(data, String(exec.scenario.iterationInTest));
}

function post({ run }, name) {
  call('POST', '/v1/events', 202, {
    id: `${run}-${name}`, event: 'k6.posted', organization: run, payload: { posted_at: Date.now() },
  });
}

export function teardown(data) {
  const arrivals = new Arrivals(data.run);
  arrivals.wait(events);
  // A last event follows the others through every step: what was repeated on its
  // way has come when it has.
  post(data, 'last');
  arrivals.wait(arrivals.seen.size + 1);
  for (let i = 0; i < events; i += 1) {
    deliveredOnce.add((arrivals.seen.get(`${data.run}-${i}`) || 0) === 1);
  }
  call('DELETE', `/v1/webhooks/${data.webhook}`, 204);
}

// Arrivals reads on, over and over, what the receiver got and answered with 200.
class Arrivals {
  constructor(run) {
    this.run = run;
    this.path = target.replace(/^\w+:\/\/[^/]+/, '').replace(/\?.*/, '') || '/';
    this.read = 0;
    this.seen = new Map(); // how often, by event id
  }

  // wait ends when so many different events have come, or maxWait has passed.
  wait(count) {
    const deadline = Date.now() + maxWait * 1000;
    this.poll();
    while (this.seen.size < count && Date.now() < deadline) {
      sleep(0.1);
      this.poll();
    }
  }

  poll() {
    const answer = http.get(`${receiver}/requests?path=${encodeURIComponent(this.path)}&from=${this.read}`, { tags: { name: 'receiver' } });
    if (answer.status !== 200) {
      throw new Error(`asking the receiver at ${receiver}: status ${answer.status}: ${answer.body || answer.error}`);
    }
    for (const line of (answer.body || '').split('\n').filter((text) => text !== '')) {
      this.add(JSON.parse(line));
    }
  }

  add(request) {
    this.read += 1;
    if (request.status !== 200 || !(request.body || '').includes(this.run)) {
      return; // of another run, or to be sent again
    }
    const event = JSON.parse(request.body);
    this.seen.set(event.id, (this.seen.get(event.id) || 0) + 1);
    deliveryWait.add(request.at_us / 1000 - event.payload.posted_at);
  }
}
