"use strict";

// The page works without this script. With it, an access token in the address
// goes into the form and out of the address; the form is sent without leaving the
// page; and the link in the answer carries the token, which the server never
// writes and this page keeps in memory only.

let token = "";

// takeToken moves a token out of the address: from its fragment, which no server
// sees, or from its query, where links of old have it.
function takeToken() {
  const address = new URL(location.href);
  const fragment = /(?:^#|&)token=([^&]*)/.exec(address.hash);
  const query = address.searchParams.get("token");
  if (!fragment && query === null) return;
  try {
    token = fragment ? decodeURIComponent(fragment[1]) : query;
  } catch {
    token = ""; // not an encoded text
  }
  address.searchParams.delete("token");
  address.hash = "";
  history.replaceState(null, "", address.pathname + address.search);
}

function fillToken() {
  const field = document.getElementById("token");
  if (field && token) field.value = token;
}

// refill puts back what was typed when the answer is the form again.
function refill(fields) {
  for (const name of ["subject", "topic"]) {
    const field = document.getElementById(name);
    if (field) field.value = fields.get(name);
  }
}

function addCopyButton(block, text, label) {
  if (!navigator.clipboard) return;
  const button = document.createElement("button");
  button.type = "button";
  button.className = "copy";
  button.textContent = label;
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Copying is not permitted here";
    }
    setTimeout(() => { button.textContent = label; }, 2000);
  });
  block.after(button);
}

function decorate() {
  fillToken();
  for (const block of document.querySelectorAll("pre")) {
    const link = block.querySelector("#form-link");
    if (!link || !token) {
      addCopyButton(block, block.textContent, "Copy");
      continue;
    }
    link.href += "#token=" + encodeURIComponent(token);
    document.getElementById("token-note").textContent =
      "Opened or copied from here, the link also carries your access token, behind a # that no server sees. Keep it to yourself.";
    addCopyButton(block, link.href, "Copy with token");
  }
}

// claim sends the form and puts the answer, a whole page, in the place of this one.
async function claim(event) {
  const form = event.target;
  if (form.id !== "claim") return;
  event.preventDefault();
  const fields = new FormData(form);
  token = fields.get("token").trim();
  const button = form.querySelector("button");
  const progress = document.getElementById("progress");
  button.disabled = true;
  progress.textContent = "Claiming; this may take a few seconds …";
  try {
    const answer = await fetch(form.action, {
      method: "POST",
      body: new URLSearchParams(fields),
      headers: { Accept: "text/html" },
      credentials: "omit",
      cache: "no-store",
      redirect: "error",
    });
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    document.querySelector("main").replaceWith(document.adoptNode(page.querySelector("main")));
    document.title = page.title;
    refill(fields);
    decorate();
    document.querySelector("h1").focus();
    scrollTo(0, 0);
  } catch {
    button.disabled = false;
    progress.textContent = "The server did not answer. Try again: repeating a claim is safe.";
  }
}

addEventListener("submit", claim);
addEventListener("hashchange", () => { takeToken(); fillToken(); });
takeToken();
decorate();
