"use strict";
// The run or file that is looked at: the ids of its checkpoints, and what people call them.
const subject = (() => {
  // `run` is the answer to the question `subject`.
  function create(run) {
    const kept = run.checkpoints.map((each) => each.id);
    const beside = run.beside.map((each) => each.id);
    const byId = new Map([...run.checkpoints, ...run.beside].map((each) => [each.id, each]));
    const pathOf = (id) => byId.get(id)?.name ?? run.path;

    // A step, or of a path as much of its end as tells it from the others.
    function label(id) {
      const step = run.is_run ? byId.get(id)?.step : null;
      if (typeof step === "number") return `step ${text.count(step)}`;
      const others = [...beside, ...(run.is_run ? [] : kept)].filter((other) => other !== id).map(pathOf);
      const parts = pathOf(id).split("/").filter(Boolean);
      for (let count = 1; count < parts.length; count += 1) {
        const end = `/${parts.slice(-count).join("/")}`;
        if (!others.some((other) => `/${other}`.endsWith(end))) return end.slice(1);
      }
      return pathOf(id);
    }

    function summary() {
      if (!run.is_run) return "";
      const steps = run.checkpoints.map((each) => text.count(each.step));
      const range = steps.length > 1 ? `steps ${steps[0]} – ${steps.at(-1)}` : steps.length ? `step ${steps[0]}` : "";
      const counted = text.counted(steps.length, "checkpoint");
      return [counted, range, `${text.bytes(run.disk_bytes)} on disk`].filter(Boolean).join(" · ");
    }

    // Whether an exported page holds what it takes to look into a checkpoint, or to compare with it.
    function holds(key, id) {
      if (key === "at") return answers.has("checkpoint", { of: id });
      return (
        !answers.standsAlone || answers.carried.some((each) => each.split(" ").some((part) => part.endsWith(`=${id}`)))
      );
    }

    // What is shown at first: the newest, compared with a file that was named, else with the first. A report holds one
    // comparison, and opens at that.
    function first() {
      const carried = answers.carried.map((key) => /^movement from=(\S+) to=(\S+)$/.exec(key)).find(Boolean);
      const at = carried?.[2] ?? kept.at(-1) ?? "";
      return { at, from: carried?.[1] ?? beside[0] ?? kept.find((id) => id !== at) ?? "" };
    }

    const ids = [...kept, ...beside];
    return { run, kept, ids, choices: [...[...kept].reverse(), ...beside], pathOf, label, summary, holds, first };
  }

  return { create };
})();
