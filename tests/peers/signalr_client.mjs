// Clients of SignalR's own library, for tests that read what they print.
//
// node signalr_client.mjs URL TRANSPORT CLIENTS
//
// TRANSPORT is `polling`, `websocket`, or `skip`: a WebSocket without a negotiation. Each client connects and
// asks its hub five times where it is. Prints JSON: of each client the five answers. Ends with 1 if
// anything fails.
import { HttpTransportType, HubConnectionBuilder, LogLevel } from '@microsoft/signalr'

const [url, transport, clients] = [process.argv[2], process.argv[3], Number(process.argv[4])]
const options = {
  polling: { transport: HttpTransportType.LongPolling },
  websocket: { transport: HttpTransportType.WebSockets },
  skip: { transport: HttpTransportType.WebSockets, skipNegotiation: true },
}[transport]

async function places() {
  const builder = new HubConnectionBuilder().withUrl(`${url}/hub`, options)
  const connection = builder.configureLogging(LogLevel.Warning).build()
  await connection.start()
  const answers = []
  for (let turn = 0; turn < 5; turn += 1) answers.push(await connection.invoke('where'))
  await connection.stop()
  return answers
}

try {
  console.log(JSON.stringify(await Promise.all(Array.from({ length: clients }, places))))
  process.exit(0)
} catch (error) {
  console.error(error)
  process.exit(1)
}
