// The chat page as a visitor has it: several tabs of a real browser, through a proxy.
//
//   PROXY_URL       where the page is (required)
//   BACKENDS        JSON, {"b0": {"pid": 123}, ..}: the backends by the id they show; with it, one
//                   is killed. Where there are two or more, rooms on different ones are looked for
//   CHROMIUM        the browser (default /usr/bin/chromium)
//   BROWSER_FLAGS   more flags for it, with spaces between
//   SCREENSHOT_DIR  where pictures go; none are taken without it
//
// The tests are one story, and run in this order. Nothing here sleeps: all is waited for.

import assert from 'node:assert/strict'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { chromium } from 'playwright-core'

const DEADLINE_MS = 30_000
const ROOMS_TRIED = 50
const FLAGS = ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
  '--disable-background-networking', '--disable-component-update', '--disable-sync']

const proxy = process.env.PROXY_URL
const backends = process.env.BACKENDS ? JSON.parse(process.env.BACKENDS) : {}
const several = Object.keys(backends).length > 1
const run = Math.random().toString(36).slice(2, 8) // So that rooms are new, whatever ran before.

let browser
let profile
let first // The tab that all the tests come back to.

before(async () => {
  assert.ok(proxy, 'PROXY_URL is not set')
  profile = await mkdtemp(join(tmpdir(), 'browser-test-'))
  browser = await chromium.launchPersistentContext(profile, {
    executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
    args: [...FLAGS, ...(process.env.BROWSER_FLAGS ?? '').split(' ').filter(Boolean)],
    viewport: { width: 1100, height: 760 },
    timeout: DEADLINE_MS,
  })
  browser.setDefaultTimeout(DEADLINE_MS)
})

after(async () => {
  await browser?.close()
  if (profile) await rm(profile, { recursive: true, force: true, maxRetries: 5 })
})

test('the page connects and names its backend', async () => {
  first = await open(`${run}-story`)
  assert.equal(await text(first, 'room'), `${run}-story`)
  assert.equal(await text(first, 'moves'), '0')
  assert.ok(await text(first, 'backend'))
  assert.equal(await first.locator('#error').isVisible(), false)
  await shot(first, 'connected')
})

test('a message sent is a message in the list', async () => {
  await say(first, 'hello, room')
  await first.keyboard.type('by keyboard alone')
  await first.keyboard.press('Enter')
  await sees(first, 'by keyboard alone')
})

test('each message shows its way', async () => {
  const message = first.locator('#messages li', { hasText: 'hello, room' })
  const [through, rest] = (await text(first, 'connection')).split('.')
  const way = `by ${await text(first, 'backend')}, through ${through}, connection ${rest}`
  assert.equal(await message.locator('.way').textContent(), way)
})

test('markup in a message stays text', async () => {
  await say(first, '<img src=x onerror="document.title=1"><b>bold</b>')
  assert.equal(await first.locator('#messages img').count(), 0)
})

test('a second tab in the room has the same backend and hears all', async () => {
  const second = await open(`${run}-story`)
  assert.equal(await text(second, 'backend'), await text(first, 'backend'))
  await say(first, 'who else is here?')
  await sees(second, 'who else is here?')
  await say(second, 'me, from another tab')
  await sees(first, 'me, from another tab')
  await shot(first, 'two-tabs')
  await second.close()
  await first.locator('#messages li', { hasText: / left$/ }).waitFor()
})

test('another room is found on another backend', { skip: !several && 'one backend' }, async () => {
  const home = await text(first, 'backend')
  const other = await firstRoom(async (room) => {
    const tab = await open(room)
    if (await text(tab, 'backend') !== home) return tab
    await tab.close()
  })
  await shot(other, 'other-backend')
  await say(other, 'only heard in here')
  await say(first, 'and this only here')
  assert.equal(await first.locator('#messages li', { hasText: 'only heard in here' }).count(), 0)
  await other.close()
})

test('the room can be changed on the page', async () => {
  const room = `${run}-änother & room`
  await enter(first, room)
  assert.equal(new URL(first.url()).searchParams.get('room'), room)
  await say(first, 'the room is new')
  assert.equal(await first.locator('#messages li', { hasText: 'hello, room' }).count(), 0)
  await first.reload()
  await connected(first)
  assert.equal(await text(first, 'room'), room)
})

test('a second welcome is a move without a disconnect', async () => {
  const tab = await browser.newPage()
  const welcome = (backend, members) =>
    JSON.stringify({ welcome: { backend, connection: 'c.1', room: 'lobby', members } })
  await tab.routeWebSocket(/\/rooms\?/, (socket) => {
    // As a proxy that re-homes makes it look, to a backend that knows how many there are, not whom.
    socket.onMessage(() => socket.send(welcome('after', 7)))
    socket.send(welcome('before', ['me']))
  })
  await tab.goto(proxy)
  await connected(tab)
  assert.equal(await text(tab, 'backend'), 'before')
  await tab.locator('#messageInput').fill('move me')
  await tab.locator('#sendButton').click()
  await sees(tab, 'moved without a disconnect, from before to after')
  assert.equal(await text(tab, 'backend'), 'after')
  assert.equal(await text(tab, 'moves'), '1')
  assert.equal(await text(tab, 'membersTitle'), 'Here (about 7)')
  await tab.close()
})

test('the narrow page does not scroll sideways', async () => {
  await first.setViewportSize({ width: 400, height: 860 })
  const overflow = await first.evaluate(() => document.documentElement.scrollWidth > innerWidth)
  assert.equal(overflow, false)
  await shot(first, 'narrow')
  await first.emulateMedia({ colorScheme: 'dark' })
  await shot(first, 'narrow-dark')
  await first.setViewportSize({ width: 1100, height: 760 })
  await shot(first, 'dark')
  await first.emulateMedia({ colorScheme: 'light' })
})

const cannotKill = !several && 'BACKENDS names no two backends'
test('a killed backend is told of, then another serves the room', { skip: cannotKill }, async () => {
  const lost = await text(first, 'backend')
  assert.ok(backends[lost], `BACKENDS does not have ${lost}`)
  // The error may be there for the blink of an eye only: have the page itself watch for it.
  await first.evaluate(() => {
    window.errors = []
    const error = document.getElementById('error')
    const look = () => { if (!error.hidden) window.errors.push(error.textContent) }
    new MutationObserver(look).observe(error, { attributes: true, childList: true })
  })
  process.kill(backends[lost].pid, 'SIGKILL')
  await first.waitForFunction(() => window.errors.length > 0)
  await shot(first, 'backend-lost')
  await first.waitForFunction((lost) =>
    document.getElementById('state').dataset.state === 'connected' &&
    document.getElementById('backend').textContent !== lost, lost)
  await first.locator('#error').waitFor({ state: 'hidden' })
  assert.equal(await text(first, 'moves'), '1')
  await say(first, 'still here')
  await shot(first, 'moved')
})

async function open(room) {
  const tab = await browser.newPage()
  await tab.goto(new URL(`/?${new URLSearchParams({ room })}`, proxy).href)
  await connected(tab)
  return tab
}

async function connected(tab) {
  await tab.locator('#state[data-state="connected"]').waitFor()
}

async function enter(tab, room) {
  await tab.locator('#roomInput').fill(room)
  await tab.locator('#joinButton').click()
  await tab.waitForFunction((room) => document.getElementById('room').textContent === room, room)
  await connected(tab)
}

async function say(tab, message) {
  await tab.locator('#messageInput').fill(message)
  await tab.locator('#sendButton').click()
  await sees(tab, message)
}

async function sees(tab, message) {
  await tab.locator('#messages li', { hasText: message }).waitFor()
}

async function text(tab, id) {
  return (await tab.locator(`#${id}`).textContent()).trim()
}

async function firstRoom(attempt) {
  for (let n = 0; n < ROOMS_TRIED; n += 1) {
    const tab = await attempt(`${run}-${n}`)
    if (tab) return tab
  }
  assert.fail(`${ROOMS_TRIED} rooms are all on one backend`)
}

async function shot(tab, name) {
  if (process.env.SCREENSHOT_DIR) {
    await tab.screenshot({ path: join(process.env.SCREENSHOT_DIR, `${name}.png`), fullPage: true })
  }
}
