"use strict";
// Uploads the dropped files with progress. The fields go first, so that a name or quota that is
// refused is refused before the files are sent.

const form = document.getElementById("register");
const drop = document.getElementById("drop");
const input = form.elements.files;
const progress = document.getElementById("progress");
const phase = document.getElementById("phase");
const verdict = document.getElementById("verdict");

function sizeOf(file) {
  return file.size < 1e6 ? `${(file.size / 1e3).toFixed(1)} KB` : `${(file.size / 1e6).toFixed(1)} MB`;
}

function showChosen() {
  const names = [...input.files].map((file) => `${file.name} (${sizeOf(file)})`);
  document.getElementById("chosen").replaceChildren(
    ...names.map((name) => Object.assign(document.createElement("li"), { textContent: name })),
  );
}

for (const kind of ["dragover", "dragleave", "drop"]) {
  drop.addEventListener(kind, (event) => {
    event.preventDefault();
    drop.classList.toggle("over", kind === "dragover");
    if (kind === "drop") {
      input.files = event.dataTransfer.files;
      showChosen();
    }
  });
}
input.addEventListener("change", showChosen);

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const body = new FormData();
  for (const name of ["name", "tenant", "metadata"]) {
    const value = form.elements[name]?.value.trim();
    if (value) body.append(name, value);
  }
  body.append("promote", form.elements.promote.checked);
  body.append("fit_rank", form.elements.fit_rank.checked);
  for (const file of input.files) body.append("files", file, file.name);
  const button = form.querySelector("button");
  const request = new XMLHttpRequest();
  request.open("POST", "/console/register");
  request.setRequestHeader("hx-request", "true");
  request.setRequestHeader("x-csrf-token", form.dataset.token);
  request.upload.addEventListener("progress", (sent) => {
    progress.value = sent.loaded / sent.total;
    phase.textContent = `Sending: ${Math.round(progress.value * 100)} %`;
  });
  request.upload.addEventListener("load", () => {
    phase.textContent = "Sent. The gate checks the files and tries them beside the base.";
  });
  request.addEventListener("loadend", () => {
    button.disabled = false;
    progress.hidden = true;
    phase.textContent = "";
    const elsewhere = request.getResponseHeader("hx-redirect");
    if (elsewhere) location.href = elsewhere;
    // What the server sends here it has escaped; the page's policy lets no script in it run.
    else if (request.status) {
      verdict.innerHTML = request.responseText;
      verdict.scrollIntoView({ block: "nearest" });
    } else {
      phase.textContent = "The upload broke off, and nothing of it was kept: send it again.";
      document.dispatchEvent(new Event("console:away"));
    }
  });
  verdict.replaceChildren();
  button.disabled = true;
  progress.hidden = false;
  progress.value = 0;
  request.send(body);
});
