// Runs one subscription with a stock client and prints every event as a line of JSON.
//   node watch.mjs graphql-ws|graphql-sse URL CREDENTIAL QUERY VARIABLES
import WebSocket from "ws";
import { createClient as createEvents } from "graphql-sse";
import { createClient as createSocket } from "graphql-ws";

const [protocol, url, credential, query, variables] = process.argv.slice(2);
const authorization = `Bearer ${credential}`;
const print = (event, value) => console.log(JSON.stringify({ event, value }));

const client =
  protocol === "graphql-ws"
    ? createSocket({
        url: url.replace(/^http/, "ws"),
        webSocketImpl: WebSocket,
        connectionParams: { authorization },
        retryAttempts: 2,
        retryWait: async () => print("retry"),
        on: {
          connected: () => print("connected"),
          closed: (event) => print("closed", event.code),
        },
      })
    : createEvents({
        url,
        headers: { authorization },
        singleConnection: false,
        retryAttempts: 0,
        onMessage: ({ event }) => event === "complete" && print("last event", event),
      });

client.subscribe(
  { query, variables: JSON.parse(variables) },
  {
    next: (result) => print("next", result),
    error: (error) => {
      print("error", error.code ?? error.message ?? error);
      client.dispose();
    },
    complete: () => {
      print("complete");
      client.dispose();
    },
  },
);
