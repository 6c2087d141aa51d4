"use strict";
// What every page of the console shares. Pages with more have a script of their own.

// A button with data-opens="ID" opens that dialog; one with data-closes closes its dialog or
// message.
document.addEventListener("click", (event) => {
  const opener = event.target.closest("[data-opens]");
  if (opener) document.getElementById(opener.dataset.opens)?.showModal();
  const closer = event.target.closest("[data-closes]");
  if (closer) {
    const dialog = closer.closest("dialog");
    if (dialog) dialog.close();
    else closer.closest(".message")?.remove();
  }
});

// A new message takes the place of the one before, and comes into view.
document.addEventListener("htmx:after:swap", () => {
  const message = document.querySelector("#messages .message");
  if (message) message.scrollIntoView({ block: "nearest" });
});

// An answer to a form in a dialog closes it, unless the dialog is where the answer goes.
document.addEventListener("htmx:after:request", (event) => {
  const dialog = event.detail.ctx.sourceElement.closest("dialog[open]");
  if (dialog && !dialog.contains(event.detail.ctx.target)) dialog.close();
});

// After a change #main is a new element. The focus was on a part of the old one, so that the next
// Tab would begin at the top of the page.
document.addEventListener("htmx:after:swap", (event) => {
  if (event.detail.ctx?.target?.id === "main") document.getElementById("main").focus();
});

// While the server does not answer, the page says so. Once it is back, the page is loaded again,
// unless somebody has typed into it what would be lost.
const away = document.getElementById("away");
let waiting = false;

async function answers() {
  try {
    return (await fetch("/livez", { cache: "no-store" })).ok;
  } catch {
    return false;
  }
}

async function untilBack() {
  if (waiting) return;
  waiting = true;
  while (!(await answers())) {
    away.hidden = false;
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
  if (document.querySelector("form[data-keeps]")) {
    away.hidden = true;
    waiting = false;
  } else {
    location.reload();
  }
}

document.addEventListener("console:away", untilBack);

document.addEventListener("htmx:error", (event) => {
  if (event.detail.error instanceof TypeError && event.detail.ctx?.status?.startsWith("error")) {
    untilBack();
  }
});

// A slider with data-shows says its value in its label.
document.addEventListener("input", (event) => {
  if (event.target.matches("input[data-shows]")) {
    event.target.closest("label").querySelector("output").textContent = event.target.value;
  }
});
