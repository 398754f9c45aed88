// GraphiQL on this service's own endpoint: queries over HTTP, subscriptions as server-sent events.

async function* readEvents(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += value;
    let end;
    while ((end = text.indexOf("\r\n\r\n")) >= 0) {
      const lines = text.slice(0, end).split("\r\n");
      text = text.slice(end + 4);
      if (lines.includes("event: complete")) return;
      const data = lines.find((line) => line.startsWith("data: "));
      if (data) yield JSON.parse(data.slice("data: ".length));
    }
  }
}

async function send(request, options) {
  const response = await fetch("/graphql", {
    method: "POST",
    headers: {
      "Content-Type": "application/json",
      Accept: request.stream ? "text/event-stream" : "application/graphql-response+json",
      ...options?.headers,
    },
    body: JSON.stringify({
      query: request.query,
      variables: request.variables,
      operationName: request.operationName,
    }),
  });
  const streams = response.headers.get("Content-Type")?.startsWith("text/event-stream");
  return streams ? readEvents(response) : response.json();
}

function isSubscription(options, name) {
  return (options?.documentAST?.definitions ?? []).some(
    (definition) => definition.operation === "subscription" && (!name || definition.name?.value === name),
  );
}

ReactDOM.createRoot(document.getElementById("graphiql")).render(
  React.createElement(GraphiQL, {
    fetcher: (request, options) =>
      send({ ...request, stream: isSubscription(options, request.operationName) }, options),
    defaultEditorToolsVisibility: "headers",
    defaultHeaders: '{"Authorization": "Bearer "}',
    defaultQuery: "{\n  viewer {\n    tenant {\n      name\n    }\n    scopes\n  }\n}\n",
  }),
);
