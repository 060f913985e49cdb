// The hinge between the panels: it moves by pointer and by arrow keys.

const LEAST = 25; // percent of the width either panel keeps
const STEP = 2;

/** Let a separator set how the width is shared. */
export function split(hinge) {
  const put = (share) => {
    const percent = Math.min(Math.max(share, LEAST), 100 - LEAST);
    document.documentElement.style.setProperty("--share", `${percent}%`);
    hinge.setAttribute("aria-valuenow", String(Math.round(percent)));
  };
  hinge.addEventListener("pointerdown", (event) => {
    event.preventDefault();
    hinge.setPointerCapture(event.pointerId);
  });
  hinge.addEventListener("pointermove", (event) => {
    if (hinge.hasPointerCapture(event.pointerId)) put((100 * event.clientX) / innerWidth);
  });
  hinge.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -STEP, ArrowRight: STEP }[event.key];
    if (step) put(Number(hinge.getAttribute("aria-valuenow")) + step);
  });
}
