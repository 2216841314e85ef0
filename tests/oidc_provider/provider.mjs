// A real OpenID Connect provider (certified: https://openid.net/certification/), as others run one. Its own development
// pages ask for a name and for consent; whoever logs in as NAME is NAME@example.com, verified unless the name begins
// with "unverified". Prints its issuer on the first line, and ends with its standard input.
import { createServer } from 'node:http';
import Provider from 'oidc-provider';

const server = createServer();
await new Promise((ready) => server.listen(0, '127.0.0.1', ready));
const issuer = `http://127.0.0.1:${server.address().port}`;
const provider = new Provider(issuer, {
  clients: [
    {
      client_id: 'amplifier', client_secret: 'a secret: of a client & more', application_type: 'native',
      redirect_uris: ['http://127.0.0.1/auth/callback/company'], token_endpoint_auth_method: 'client_secret_basic',
    },
    {
      client_id: 'public', application_type: 'native', token_endpoint_auth_method: 'none',
      redirect_uris: ['http://127.0.0.1/auth/callback/public'],
    },
  ],
  claims: { openid: ['sub'], profile: ['name'], email: ['email', 'email_verified'] },
  pkce: { required: () => true },
  findAccount: (ctx, id) => ({
    accountId: id,
    claims: () => ({ sub: id, name: `${id} of the company`, email: `${id}@example.com`, email_verified: !id.startsWith('unverified') }),
  }),
  cookies: { keys: ['only for tests'] },
});
server.on('request', provider.callback());
process.stdin.resume();
process.stdin.on('end', () => process.exit(0));
console.log(issuer);
