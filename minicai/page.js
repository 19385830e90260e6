// The filter of the transcripts, and a few of them at once. Without script the form is hidden and
// everything is shown.
const form = document.querySelector("#filter");
const cards = document.querySelectorAll("#transcripts article");
const more = document.querySelector("#more");
const AT_ONCE = 20;
let limit = AT_ONCE;

function filter() {
  const { kind, verdict, stage, words } = Object.fromEntries(new FormData(form));
  let answers = 0, requests = 0;
  for (const card of cards) {
    const asked = !kind || card.dataset.kind === kind || card.dataset.set === kind;
    let shown = 0;
    for (const answer of card.querySelectorAll("li")) {
      answer.hidden = !(asked
        && (!verdict || answer.classList.contains(verdict))
        && (!stage || answer.dataset.stage === stage)
        && (!words || card.textContent.toLowerCase().includes(words.toLowerCase())));
      shown += !answer.hidden;
    }
    answers += shown;
    requests += shown > 0;
    card.hidden = !shown || requests > limit;
  }
  more.hidden = requests <= limit;
  document.querySelector("#matches").textContent =
    `${answers.toLocaleString("en")} answers to ${requests.toLocaleString("en")} requests match`;
}

if (form) {
  form.hidden = false;
  const again = () => { limit = AT_ONCE; filter(); };
  form.addEventListener("input", again);
  form.addEventListener("reset", () => setTimeout(again));
  more.addEventListener("click", () => { limit += AT_ONCE; filter(); });
  form.addEventListener("submit", (event) => event.preventDefault());
  filter();
}
