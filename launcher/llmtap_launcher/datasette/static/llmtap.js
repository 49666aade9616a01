// Datasette's table.js asks for this global; its own templates set it inline, which our Content-Security-Policy forbids.
window.DATASETTE_ALLOW_FACET = true;
// Menus close at a click elsewhere. Only menus: the folds of a transcript stay as the reader left them.
document.addEventListener("click", (ev) => {
  for (const menu of document.querySelectorAll("details.nav-menu[open], details.actions-menu-links[open]")) {
    if (!menu.contains(ev.target)) menu.open = false;
  }
});
// On a narrow screen the bar scrolls: the tab one is at is in sight.
document.querySelector("header.bar .here")?.scrollIntoView({ block: "nearest", inline: "center" });
