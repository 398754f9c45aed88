// node provider.mjs REDIRECT_URI PROOF: a certified OpenID provider on a free port of loopback, which prints its issuer.
// Whoever logs in as NAME has the address NAME@example.org, and is of the groups that the name begins with, up to a dash.
// PROOF is how the client shows who it is: client_secret_basic, client_secret_post or none.
import { createServer } from "node:http";
import Provider from "oidc-provider";

const [redirectUri, proof] = process.argv.slice(2);
const server = createServer();
await new Promise((listening) => server.listen(0, "127.0.0.1", listening));
const issuer = `http://127.0.0.1:${server.address().port}`;

const provider = new Provider(issuer, {
  clients: [{
    client_id: "tenantry",
    ...(proof === "none" ? {} : { client_secret: "a client secret: 50% of it + more" }),
    token_endpoint_auth_method: proof,
    redirect_uris: [redirectUri],
  }],
  claims: { openid: ["sub"], email: ["email", "email_verified"], profile: ["name"], groups: ["groups"] },
  scopes: ["openid", "email", "profile", "groups"],
  findAccount: (_, sub) => ({
    accountId: sub,
    claims: () => ({
      sub,
      email: `${sub}@example.org`,
      email_verified: !sub.startsWith("unverified"),
      groups: [sub.split("-")[0]],
    }),
  }),
  cookies: { keys: ["a key for tests"] },
  jwks: undefined,
});
server.on("request", provider.callback());
console.log(JSON.stringify({ issuer }));
