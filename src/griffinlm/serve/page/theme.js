// Dark and light: as the system has it, until the button is pressed.

const THEME = "griffin.theme";

export function startTheme(button) {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const chosen = localStorage.getItem(THEME);
  if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
  button.addEventListener("click", () => {
    const present = document.documentElement.dataset.theme ?? (system.matches ? "dark" : "light");
    const next = present === "dark" ? "light" : "dark";
    document.documentElement.dataset.theme = next;
    localStorage.setItem(THEME, next);
  });
}
