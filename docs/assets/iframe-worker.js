// Search in pages that are opened from a disk, where browsers start no workers: the worker's
// script runs in a hidden frame instead. The theme asks for it by the name IFrameWorker.
class FrameWorker extends EventTarget {
  constructor(url) {
    super();
    const frame = document.createElement("iframe");
    frame.hidden = true;
    document.body.append(frame);
    this.inner = frame.contentWindow;
    const load = (script) =>
      new Promise((done, failed) => {
        const element = this.inner.document.createElement("script");
        Object.assign(element, { src: script, onload: done, onerror: failed });
        this.inner.document.body.append(element);
      });
    this.inner.importScripts = (...urls) =>
      urls.reduce((before, each) => before.then(() => load(each)), Promise.resolve());
    this.inner.postMessage = (data) =>
      this.dispatchEvent(new MessageEvent("message", { data }));
    this.ready = load(url);
  }

  postMessage(data) {
    const event = () => new this.inner.MessageEvent("message", { data });
    this.ready.then(() => this.inner.dispatchEvent(event()));
  }

  terminate() {
    this.inner.frameElement.remove();
  }
}

window.IFrameWorker = FrameWorker;
if (location.protocol === "file:") window.Worker = FrameWorker;
