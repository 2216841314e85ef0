// openid-client: the device flow. Prints where a person decides, then what the device got can do.
import * as oidc from "openid-client";
import { api, say } from "./given.mjs";

const server = {
  issuer: api,
  device_authorization_endpoint: `${api}/auth/device/code`,
  token_endpoint: `${api}/auth/device/token`,
};
const config = new oidc.Configuration(server, "a program", undefined, oidc.None());
oidc.allowInsecureRequests(config);
const begun = await oidc.initiateDeviceAuthorization(config, { client_name: "a program" });
console.log(begun.verification_uri_complete);
const token = await oidc.pollDeviceAuthorizationGrant(config, begun);
const me = await fetch(`${api}/v1/me`, { headers: { Authorization: `Bearer ${token.access_token}` } });
say({ status: me.status, type: token.token_type.toLowerCase() });
