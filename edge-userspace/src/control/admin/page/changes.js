// What needs the token: it is kept for this tab alone and sent to this address alone.

const PLACE = "edge-admin-token";

export const token = {
  get: () => sessionStorage.getItem(PLACE),
  set: text => sessionStorage.setItem(PLACE, text),
  forget: () => sessionStorage.removeItem(PLACE),
};

export class Refused extends Error {
  constructor(status, { message, hint } = {}) {
    super((message ?? `edged answers ${status}`) + (hint ? `. ${hint}` : ""));
    this.status = status;
  }
}

// An answer of edged as JSON, or the reason why there is none.
export async function call(method, path, body) {
  const headers = {};
  if (token.get()) headers.Authorization = "Bearer " + token.get();
  if (body) headers["Content-Type"] = "application/json";
  const answer = await fetch(path, { method, headers, body: body && JSON.stringify(body) });
  const value = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Refused(answer.status, value.error);
  return value;
}
