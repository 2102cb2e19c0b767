// The tree of turns beside the conversation: arrows move, Enter goes to a turn.

import { inShort } from "./format.js";
import { element } from "./messages.js";

export class TreeView {
  /**
   * @param {HTMLElement} root
   * @param {(turn: object) => void} goTo
   */
  constructor(root, goTo) {
    this.root = root;
    this.goTo = goTo;
    root.addEventListener("keydown", (event) => this.#move(event));
  }

  /** Shows the tree. A turn that follows another alone stands under it; where there are several, each is indented. */
  show(tree) {
    this.tree = tree;
    const hadFocus = this.root.contains(document.activeElement);
    this.items = new Map();
    const onPath = new Set(tree.path());
    const rows = [];
    const waiting = [[tree.turns[0], 0]];
    while (waiting.length) {
      const [turn, depth] = waiting.pop();
      rows.push(this.#item(turn, depth, onPath));
      const children = tree.childrenOf(turn);
      const below = children.length > 1 ? depth + 1 : depth;
      waiting.push(...children.reverse().map((child) => [child, below]));
    }
    this.root.replaceChildren(...rows);
    const current = this.items.get(tree.currentNumber);
    current.tabIndex = 0;
    if (hadFocus) current.focus();
    current.scrollIntoView({ block: "nearest" });
  }

  #item(turn, depth, onPath) {
    const isCurrent = turn === this.tree.current;
    const text = turn.parent === null ? "beginning" : inShort(turn.question, 60);
    const item = element("li", { tabIndex: -1 },
      element("span", { className: "number", text: String(turn.number) }),
      element("span", { className: "words", text }));
    item.setAttribute("role", "treeitem");
    item.setAttribute("aria-level", String(this.tree.path(turn).length + 1));
    item.setAttribute("aria-selected", String(isCurrent));
    item.style.setProperty("--depth", String(Math.min(depth, 8)));
    if (this.tree.siblingsOf(turn).length > 1) item.classList.add("branch");
    if (onPath.has(turn) || turn.parent === null) item.classList.add("on-path");
    item.addEventListener("click", () => this.goTo(turn));
    item.turn = turn;
    this.items.set(turn.number, item);
    return item;
  }

  #move(event) {
    const item = event.target.closest("[role=treeitem]");
    if (item === null) return;
    const children = this.tree.childrenOf(item.turn);
    const goals = {
      ArrowUp: item.previousElementSibling,
      ArrowDown: item.nextElementSibling,
      ArrowLeft: item.turn.parent === null ? null : this.items.get(item.turn.parent),
      ArrowRight: children.length ? this.items.get(children[0].number) : null,
      Home: this.root.firstElementChild,
      End: this.root.lastElementChild,
    };
    if (event.key in goals) {
      const goal = goals[event.key];
      if (goal) {
        item.tabIndex = -1;
        goal.tabIndex = 0;
        goal.focus();
      }
    } else if (event.key === "Enter" || event.key === " ") {
      this.goTo(item.turn);
    } else {
      return;
    }
    event.preventDefault();
  }
}
