// The form behind a link in a mail. The link's secret stands behind the #, which the browser keeps to itself.
"use strict";
const PAGES = {
  invitation: ["You are invited", "Your password, or a new one if you have none here", "Accept", "/auth/invitation"],
  reset: ["A new password", "New password", "Change it", "/auth/reset/confirm"],
  signup: ["Your tenant", "Your password, or a new one if you have none here", "Make it", "/auth/signup/confirm"],
};
const element = (id) => document.getElementById(id);
const [title, label, action, route] = PAGES[location.pathname.split("/").pop()];
const form = element("form");
const token = new URLSearchParams(location.hash.slice(1)).get("token");

element("title").textContent = title;
element("label").textContent = label;
form.querySelector("button").textContent = action;
form.hidden = !token;
if (!token) element("told").textContent = "Open the whole link from the mail.";
history.replaceState(null, "", location.pathname);

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const body = { token, password: form.password.value };
  if (form.tenant.value) body.tenant = form.tenant.value;
  const answer = await fetch(route, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
  });
  form.hidden = answer.ok;
  if (answer.ok) {
    element("told").textContent = "Done. You can log in now.";
    return;
  }
  const [problem] = (await answer.json()).errors;
  element("told").textContent = problem.message;
  element("tenant").hidden = problem.extensions.code !== "CONFLICT";
});
