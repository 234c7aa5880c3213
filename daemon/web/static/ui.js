// A page that somebody reads with the keyboard, or in which text is selected, is not taken away from under them.
document.addEventListener("htmx:beforeRequest", (event) => {
  const main = document.getElementById("main"), at = document.activeElement;
  if ((at !== main && main.contains(at)) || String(document.getSelection()) !== "") event.preventDefault();
});
