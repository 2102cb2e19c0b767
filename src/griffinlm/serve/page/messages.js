// The messages on the way to the current turn. Text is only ever set as text.

/** An element with a class, text and children. */
export function element(tag, { className = "", text = "", ...properties } = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  if (className) made.className = className;
  if (text) made.textContent = text;
  made.append(...children);
  return made;
}

/** Why an answer is not whole, in words; empty where it is. */
export function cutNote(turn) {
  if (turn.responseId === null) return "cut short";
  return { max_output_tokens: "cut at its length limit", deadline: "cut at its time limit" }[turn.limit] ?? "";
}

export class Messages {
  /**
   * @param {HTMLElement} list
   * @param {{edit: Function, again: Function, goOn: Function, goTo: Function}} actions what the buttons under messages do
   */
  constructor(list, actions) {
    this.list = list;
    this.actions = actions;
  }

  /** Shows a path; the turn that is being written has no buttons yet. */
  show(tree, writing = null) {
    this.list.replaceChildren(...tree.path().flatMap((turn) => [
      this.#question(tree, turn, writing),
      this.#answer(tree, turn, writing),
    ]));
    this.#scroll();
  }

  /** Adds text to the last answer. */
  append(text) {
    const isAtEnd = this.#isAtEnd();
    this.list.lastElementChild.querySelector(".said").append(text);
    if (isAtEnd) this.#scroll();
  }

  #question(tree, turn, writing) {
    const item = element("li", { className: "question" }, said("You", turn.question));
    if (writing !== null) return item;
    const tools = element("div", { className: "tools" });
    const siblings = tree.siblingsOf(turn);
    if (siblings.length > 1) tools.append(this.#branches(tree, siblings, siblings.indexOf(turn)));
    tools.append(button("Edit", `Edit turn ${turn.number}`, () => this.actions.edit(turn)));
    item.append(tools);
    return item;
  }

  #answer(tree, turn, writing) {
    const item = element("li", { className: "answer" }, said("Model", turn.answer));
    if (turn === writing) item.classList.add("writing");
    if (writing !== null) return item;
    const tools = element("div", { className: "tools" });
    tools.append(button("Again", `Answer turn ${turn.number} again`, () => this.actions.again(turn)));
    const note = cutNote(turn);
    if (turn !== tree.current) {
      tools.append(button("Fork here", `Go on behind turn ${turn.number}`, () => this.actions.goTo(turn)));
    } else if (note) {
      tools.append(button("Go on", `Let turn ${turn.number} go on`, () => this.actions.goOn()));
    }
    if (note) tools.append(element("span", { className: "note", text: note }));
    item.append(tools);
    return item;
  }

  #branches(tree, siblings, index) {
    const step = (text, label, to) => {
      const made = button(text, label, () => this.actions.goTo(tree.tipOf(siblings[to])));
      made.disabled = siblings[to] === undefined;
      return made;
    };
    return element("span", { className: "branches" },
      step("‹", "Branch before", index - 1),
      element("span", { text: `${index + 1}/${siblings.length}` }),
      step("›", "Branch behind", index + 1));
  }

  #isAtEnd() {
    const { scrollHeight, scrollTop, clientHeight } = this.list.parentElement;
    return scrollHeight - scrollTop - clientHeight < 48;
  }

  #scroll() {
    this.list.parentElement.scrollTop = this.list.parentElement.scrollHeight;
  }
}

function said(who, text) {
  return element("div", {},
    element("span", { className: "unseen", text: `${who}: ` }),
    element("span", { className: "said", text }));
}

function button(text, label, act) {
  const made = element("button", { type: "button", text });
  made.setAttribute("aria-label", label);
  made.addEventListener("click", act);
  return made;
}
