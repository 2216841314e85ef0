"""GraphQL: a door to the same services as REST. docs/graphql.md says what it offers."""
