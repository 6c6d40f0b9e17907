/* A theme switch for Flower before 2.1, which has none. Runs before the first paint, and stores
   the choice where later versions of Flower look for it. */
"use strict";

(() => {
  const KEY = "flower-theme";
  const root = document.documentElement;
  const dark = window.matchMedia("(prefers-color-scheme: dark)");

  function chosen() {
    try {
      return window.localStorage.getItem(KEY);
    } catch {
      return null; // storage is forbidden: use the system's theme
    }
  }

  function apply() {
    root.dataset.bsTheme = chosen() ?? (dark.matches ? "dark" : "light");
    const button = document.getElementById("rts-theme");
    if (button) {
      button.hidden = false;
      button.textContent = root.dataset.bsTheme === "dark" ? "Light" : "Dark";
      button.setAttribute("aria-label", `${button.textContent} theme`);
    }
  }

  apply();
  dark.addEventListener("change", apply);
  document.addEventListener("DOMContentLoaded", () => {
    apply();
    document.getElementById("rts-theme")?.addEventListener("click", () => {
      try {
        window.localStorage.setItem(KEY, root.dataset.bsTheme === "dark" ? "light" : "dark");
      } catch {
        return;
      }
      apply();
    });
  });
})();
