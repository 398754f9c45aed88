// Runs the audits of GraphQL over HTTP and prints each result as a line of JSON.
//   node audit.mjs URL
import { auditServer } from "graphql-http";

for (const result of await auditServer({ url: process.argv[2] })) {
  console.log(JSON.stringify({ id: result.id, name: result.name, status: result.status, reason: result.reason }));
}
