(() => {
  "use strict";
  const keep = (old, fresh) => {
    for (const one of old.querySelectorAll("details[open]")) fresh.querySelector("#" + one.id)?.setAttribute("open", "");
    const href = old.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
    const [was, log] = [old.querySelector(".log"), fresh.querySelector(".log")];
    const [top, atEnd] = was ? [was.scrollTop, was.scrollTop + was.clientHeight > was.scrollHeight - 8] : [0, true];
    old.replaceWith(fresh);
    if (log) log.scrollTop = atEnd ? log.scrollHeight : top;
    if (href) [...fresh.querySelectorAll("a")].find((one) => one.getAttribute("href") === href)?.focus({preventScroll: true});
  };
  const load = async () => {
    const answer = await fetch(location.href, {headers: {Accept: "text/html"}});
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    document.title = fresh.title;
    keep(document.querySelector("main"), fresh.querySelector("main"));
    return Number(fresh.documentElement.dataset.refresh || 0);
  };
  const wait = (seconds) => seconds && setTimeout(async () => {
    const isBusy = document.hidden || !getSelection().isCollapsed;
    let next = seconds;
    try {
      if (!isBusy) next = await load();
      document.querySelector("#lost").hidden = true;
    } catch {
      document.querySelector("#lost").hidden = false;
    }
    wait(next);
  }, seconds * 1000);
  const log = document.querySelector(".log");
  if (log) log.scrollTop = log.scrollHeight;
  wait(Number(document.documentElement.dataset.refresh));
})();
